"""The round loop with sites that answer late, wrongly, twice, or not at all."""

import threading

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedmed.configuration import FederationConfig, ModelConfig, Plan, StrategyConfig
from fedmed.configuration.groups import TransportConfig, TransportMode
from fedmed.errors import FederationError
from fedmed.federation.in_process import InProcessGrid
from fedmed.federation.observer import SilentObserver
from fedmed.federation.records import (
    UPDATE,
    Evaluated,
    Joined,
    Refused,
    Trained,
    pack,
    unpack_request,
)
from fedmed.federation.rounds import RoundLoop
from fedmed.federation.run_folder import Checkpoint, RunFolder
from fedmed.federation.strategies.fedavg import FedAvg
from fedmed.models.parameters import ParameterLayout, flatten
from fedmed.models.registry import build_model
from fedmed.tasks.classification.task import Classification

PLAN = Plan(
    model=ModelConfig(width=2, stages=1),
    transport=TransportConfig(mode=TransportMode.plain),
    federation=FederationConfig(rounds=2, minimum_sites=2, deadline_seconds=5.0, join_seconds=0.2),
)
TASK = Classification(PLAN.task)
MODEL = build_model(PLAN.model, channels=1, outputs=1, seed=0)
LAYOUT = ParameterLayout.of(MODEL)
EXAMPLES = {"a": 10, "b": 30, "c": 60}


def scripted_app(**scripts):
    """Each site adds its number of examples to every weight, unless its script says otherwise."""
    app = ClientApp()
    names = sorted(EXAMPLES)

    def script(message, context):
        name = names[context.node_config["partition-id"]]
        request = unpack_request(message.content)
        return name, request, scripts.get(name)

    @app.query("join")
    def join(message, context):
        name, _, odd = script(message, context)
        if odd == "refuse":
            reply = pack(Refused(name, "PrivacyError", "the limit is reached"))
        else:
            same = "a" if odd == "same name" else name
            reply = pack(Joined(same, EXAMPLES[name], 1, 1, {}, None))
        return Message(reply, reply_to=message)

    @app.train()
    def train(message, context):
        name, request, odd = script(message, context)
        update = np.full(LAYOUT.size, EXAMPLES[name], np.float32)
        if callable(odd):
            odd = odd(request.round)
        if odd == "crash":
            raise RuntimeError("patient DOE^JANE is in this text")
        if odd == "wrong size":
            update = update[:-1]
        if odd == "nan":
            update[3] = np.nan
        examples = 10**9 if odd == "too many examples" else EXAMPLES[name]
        if odd == "other name":
            name = "b" if name != "b" else "a"
        if odd == "wrong kind":
            return Message(pack(Evaluated(name, "val"), {UPDATE: update}), reply_to=message)
        report = Trained(name, examples, 0.5, None, 0.1)
        return Message(pack(report, {UPDATE: update}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        name, request, _ = script(message, context)
        counts = {key: np.ones(shape) for key, shape in TASK.aggregate_shapes.items()}
        return Message(pack(Evaluated(name, request.split), counts), reply_to=message)

    return app


def run(app, folder, plan=PLAN, workers=3):
    grid = InProcessGrid(app, [{"partition-id": n} for n in range(3)], workers)
    loop = RoundLoop(
        grid,
        plan,
        TASK,
        LAYOUT,
        FedAvg(StrategyConfig()),
        RunFolder(folder),
        SilentObserver(),
        run="test",
        expected=3,
    )
    start = Checkpoint(run="test", round=0, weights=flatten(MODEL))
    try:
        return loop, loop.train(start)
    finally:
        grid.close()


def rounds(folder):
    import json

    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def moved(checkpoint):
    return checkpoint.weights - flatten(MODEL)


def test_the_average_is_weighted_by_examples(tmp_path):
    _, final = run(scripted_app(), tmp_path)
    expected = 2 * (10 * 10 + 30 * 30 + 60 * 60) / 100
    np.testing.assert_allclose(moved(final), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        ("crash", "failed"),
        ("wrong size", "failed"),
        ("nan", "failed"),
        ("other name", "failed"),
        ("wrong kind", "failed"),
        ("too many examples", "failed"),
    ],
)
def test_a_bad_answer_counts_as_failed_and_the_round_goes_on(tmp_path, odd, status):
    _, final = run(scripted_app(c=odd), tmp_path)
    np.testing.assert_allclose(moved(final), 2 * (10 * 10 + 30 * 30) / 40, rtol=1e-5)
    for record in rounds(tmp_path):
        assert record["sites"]["c"]["status"] == status
        assert record["sites"]["c"]["reason"]
        assert record["participants"] == ["a", "b"]


def test_the_text_of_a_crash_does_not_leave_the_site(tmp_path):
    run(scripted_app(c="crash"), tmp_path)
    assert "DOE" not in (tmp_path / "rounds.jsonl").read_text()
    assert "RuntimeError" in (tmp_path / "rounds.jsonl").read_text()


def test_a_refusal_at_joining_is_not_fatal_and_its_reason_is_kept(tmp_path):
    loop, _ = run(scripted_app(b="refuse"), tmp_path)
    assert [refused.reason for refused in loop.participants.refused.values()] == [
        "the limit is reached"
    ]
    assert rounds(tmp_path)[0]["participants"] == ["a", "c"]


def test_two_nodes_under_one_name_are_one_site(tmp_path):
    loop, _ = run(scripted_app(c="same name"), tmp_path)
    assert sorted(joined.site for joined in loop.participants.joined.values()) == ["a", "b"]


def test_a_late_site_does_not_hold_up_the_round_and_is_not_counted_twice(tmp_path):
    release = threading.Event()

    def late(number):
        if number == 1:
            release.wait(30)
        return

    plan = Plan(
        model=PLAN.model,
        transport=PLAN.transport,
        federation=FederationConfig(
            rounds=2, minimum_sites=2, deadline_seconds=0.5, join_seconds=0.2
        ),
    )
    app = scripted_app(c=late)
    timer = threading.Timer(0.8, release.set)
    timer.start()
    try:
        _, final = run(app, tmp_path, plan, workers=4)
    finally:
        release.set()
        timer.join()
    first, second = rounds(tmp_path)
    assert first["sites"]["c"]["status"] == "late"
    assert first["participants"] == ["a", "b"]
    without = (10 * 10 + 30 * 30) / 40
    together = (10 * 10 + 30 * 30 + 60 * 60) / 100
    expected = without + (together if "c" in second["participants"] else without)
    np.testing.assert_allclose(moved(final), expected, rtol=1e-5)


def test_too_few_results_end_the_run_with_the_reasons_and_keep_the_last_round(tmp_path):
    with pytest.raises(FederationError, match=r"Round 2: 1 usable") as caught:
        run(
            scripted_app(
                b=lambda number: "crash" if number == 2 else None,
                c=lambda number: "nan" if number == 2 else None,
            ),
            tmp_path,
        )
    assert "b: failed" in str(caught.value)
    assert "resume" in str(caught.value)
    assert RunFolder(tmp_path).newest_checkpoint(LAYOUT).round == 1


def test_too_few_sites_are_an_error_that_names_the_refusals(tmp_path):
    with pytest.raises(FederationError, match="the limit is reached"):
        run(scripted_app(b="refuse", c="refuse"), tmp_path)


def test_a_fraction_of_the_sites_is_drawn_repeatably(tmp_path):
    plan = Plan(
        model=PLAN.model,
        transport=PLAN.transport,
        federation=FederationConfig(
            rounds=6, minimum_sites=2, fraction_sites=0.6, deadline_seconds=5.0
        ),
    )
    run(scripted_app(), tmp_path / "one", plan)
    run(scripted_app(), tmp_path / "two", plan)
    drawn = [record["participants"] for record in rounds(tmp_path / "one")]
    assert drawn == [record["participants"] for record in rounds(tmp_path / "two")]
    assert {len(sites) for sites in drawn} == {2}
    assert len({tuple(sites) for sites in drawn}) > 1
