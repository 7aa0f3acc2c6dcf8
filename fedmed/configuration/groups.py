"""The typed groups of settings, one dataclass for each group in ``conf/``.

The YAML files in ``conf/`` are presets of these; a key that is in none of these classes, or a
value of another type, is refused before anything starts. Members of the enumerations are in lower
case because OmegaConf looks a value up by the member's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class DataSource(StrEnum):
    """Where a site's images come from."""

    phantom = "phantom"
    manifest = "manifest"
    npz = "npz"


class Partition(StrEnum):
    """How one data set is dealt to simulated sites."""

    dirichlet = "dirichlet"
    iid = "iid"


class Optimizer(StrEnum):
    """Optimiser of local training."""

    sgd = "sgd"
    adamw = "adamw"


class Schedule(StrEnum):
    """Learning rate over the whole federated run."""

    constant = "constant"
    cosine = "cosine"


class Normalisation(StrEnum):
    """Normalisation layer of a network."""

    group = "group"
    batch = "batch"


class Unit(StrEnum):
    """Whose contribution differential privacy bounds."""

    patient = "patient"
    image = "image"


class PrivacyModel(StrEnum):
    """Who adds the noise."""

    local = "local"
    distributed = "distributed"
    central = "central"


class Sampling(StrEnum):
    """How a step's batch is drawn under differential privacy."""

    poisson = "poisson"
    shuffle = "shuffle"


class Clipping(StrEnum):
    """How gradients are clipped one by one; all ways give the same sum."""

    auto = "auto"
    book_keeping = "book_keeping"
    functional = "functional"
    hooks = "hooks"


class TransportMode(StrEnum):
    """What the server sees of an update."""

    secagg = "secagg"
    sealed = "sealed"
    plain = "plain"


class Engine(StrEnum):
    """What carries messages in a simulation."""

    in_process = "in_process"
    ray = "ray"


@dataclass(frozen=True)
class TaskConfig:
    """What is learnt.

    Attributes:
        name: task folder in ``fedmed/tasks``.
        labels: the consortium's label schema; the order gives the class indices. A binary task
            has two names, the second being the finding.
        multi_label: whether an image may carry several labels.
    """

    name: str = "classification"
    labels: list[str] = field(default_factory=lambda: ["negative", "positive"])
    multi_label: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: builder in ``fedmed/models/registry.py``.
        width: channels of the first stage; each stage doubles them. For ``scattering``, the number
            of orientations of its filters, at most 16.
        stages: number of resolutions; for ``scattering`` each is half of the one before.
        blocks: residual blocks a stage.
        groups: most groups in a GroupNorm layer.
        normalisation: ``group``; ``batch`` for comparisons without differential privacy only.
        init: safetensors file that the training starts from, read by the proposer alone; in the
            plan stands its SHA-256 in place of the path. ``null`` is random weights.
        weight_standardisation: give each convolution's filters mean 0 and variance 1.
        freeze: patterns (as ``encoder.layers.0*``) of parameters that keep their first values;
            neither trained nor noised.
    """

    name: str = "residual_cnn"
    width: int = 16
    stages: int = 4
    blocks: int = 1
    groups: int = 8
    normalisation: Normalisation = Normalisation.group
    init: str | None = None
    weight_standardisation: bool = False
    freeze: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataConfig:
    """Where the images are. Stays on the machine that reads them; never sent.

    Attributes:
        source: ``phantom`` (made on the fly), ``manifest`` (one folder a hospital, each with
            ``manifest.csv``) or ``npz`` (one array file dealt to simulated sites).
        root: folder that holds one folder for each hospital; for ``phantom``, where the archives
            are written (default: inside the run folder).
        path: the ``.npz`` file.
        sites: number of simulated sites (``phantom``, ``npz``).
        patients: mean number of phantom patients a site.
        partition: how an ``.npz`` file is dealt to the sites.
        alpha: concentration of the Dirichlet partition; small means unlike sites.
    """

    source: DataSource = DataSource.phantom
    root: str | None = None
    path: str | None = None
    sites: int = 3
    patients: int = 500
    partition: Partition = Partition.dirichlet
    alpha: float = 0.5


@dataclass(frozen=True)
class PreprocessingConfig:
    """How an image becomes a tensor; the same at every site.

    Attributes:
        size: side of the square network input, in pixels; the aspect is kept.
        channels: 1 (grey) or 3 (colour).
        fractions: shares of patients for training, validation and test.
    """

    size: int = 64
    channels: int = 1
    fractions: list[float] = field(default_factory=lambda: [0.7, 0.1, 0.2])


@dataclass(frozen=True)
class TrainingConfig:
    """Local training at a site.

    Attributes:
        optimizer: ``sgd`` or ``adamw``.
        learning_rate: at the start of the run.
        weight_decay: decoupled weight decay (L2 for SGD).
        momentum: of SGD.
        schedule: ``cosine`` falls to 2 % of the learning rate at the last step of the run.
        batch_size: images a step without differential privacy (with it, see
            ``privacy.sample_rate``).
        augment: random flips, small affine changes and intensity changes.
        balance: weigh the loss by inverse class frequency at the site.
        amp: bfloat16 autocast on a CUDA device.
    """

    optimizer: Optimizer = Optimizer.adamw
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    momentum: float = 0.9
    schedule: Schedule = Schedule.cosine
    batch_size: int = 16
    augment: bool = True
    balance: bool = False
    amp: bool = True


@dataclass(frozen=True)
class FederationConfig:
    """Rounds.

    Attributes:
        rounds: number of rounds.
        local_epochs: passes over a site's training images in a round.
        fraction_sites: share of the connected sites that is asked in a round.
        minimum_sites: a round with fewer results is not applied.
        deadline_seconds: a round goes on with what has arrived by then.
        join_seconds: how long the server waits for ``minimum_sites`` to connect.
        evaluate_every: rounds between evaluations on the validation sets; 0 is never.
    """

    rounds: int = 10
    local_epochs: float = 3.0
    fraction_sites: float = 1.0
    minimum_sites: int = 3
    deadline_seconds: float = 3600.0
    join_seconds: float = 600.0
    evaluate_every: int = 1


@dataclass(frozen=True)
class StrategyConfig:
    """How updates become the next global model.

    Attributes:
        name: file in ``fedmed/federation/strategies``.
        server_learning_rate: factor on the aggregated update.
    """

    name: str = "fedavg"
    server_learning_rate: float = 1.0


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of each site's training (DP-SGD).

    Attributes:
        preset: name of the preset, for the report.
        enabled: whether updates are clipped and noised.
        unit: ``patient`` bounds what all images of a patient do together, ``image`` what one does.
        model: ``local`` (each site adds all the noise it needs), ``distributed`` (each adds a
            share, the sum carries the target; needs secure aggregation) or ``central`` (the
            server adds it; for comparisons).
        target_epsilon: spent by one unit over the whole planned run; each site solves for its own
            noise multiplier.
        delta: probability bound; ``null`` is ``1 / (10 x patients)`` of the site, at most 1e-5.
        noise_multiplier: fixed noise instead of a target epsilon.
        clipping_norm: L2 bound on one unit's gradient.
        sampling: ``poisson``; the accounting holds for nothing else.
        sample_rate: probability that a unit is in a step's batch.
        batch_size: expected units a step, instead of a sample rate: each site divides by its own
            number of units.
        images_per_patient: most images that a patient lends to one step, chosen anew each time
            (``unit=patient``).
        augmentation_multiplicity: views of each image a step, averaged before clipping.
        ema_decay: send the exponential moving average of the round's steps; ``null`` is the last.
        max_physical_batch: images (times views) whose gradients are held in memory at once.
        clipping: ``auto`` chooses the quickest way that is right for the network.
        learning_rate: replaces ``training.learning_rate`` while privacy is on.
        honest_sites: number of honest sites whose noise alone must do (``model=distributed``); a
            smaller one than secure aggregation warrants is taken, a larger one is not; ``null``
            is what it warrants.
    """

    preset: str = "off"
    enabled: bool = False
    unit: Unit = Unit.patient
    model: PrivacyModel = PrivacyModel.local
    target_epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    clipping_norm: float = 1.0
    sampling: Sampling = Sampling.poisson
    sample_rate: float | None = 0.1
    batch_size: int | None = None
    images_per_patient: int = 8
    augmentation_multiplicity: int = 1
    ema_decay: float | None = None
    max_physical_batch: int = 256
    clipping: Clipping = Clipping.auto
    learning_rate: float | None = None
    honest_sites: int | None = None


@dataclass(frozen=True)
class TransportConfig:
    """How updates travel; part of the plan, since all sites must do the same.

    Attributes:
        mode: ``secagg`` (the server learns sums only), ``sealed`` (each update is encrypted for
            the server, which sees it; for strategies that need single updates) or ``plain``
            (unsigned; tests only).
        bits: size of a masked number: 32, or 16 for half of the bytes and a coarser grid.
        update_bound: numbers of an update beyond it are clipped, and counted (``secagg``).
        step_seconds: time to answer in the short exchanges, where nothing is trained.
        attempts: how often a round is tried before the run ends (``secagg``).
    """

    mode: TransportMode = TransportMode.secagg
    bits: int = 32
    update_bound: float = 8.0
    step_seconds: float = 60.0
    attempts: int = 3


@dataclass(frozen=True)
class LinkConfig:
    """The connection between server and sites in deployment; each machine's own.

    Attributes:
        address: ``host:port`` of the gateway; what the server binds and a client calls.
        credentials: folder with this machine's keys and certificates (``fedmed pki``).
        passphrase_file: file with the passphrase of the private keys; ``null`` asks the environment
            (``FEDMED_PASSPHRASE`` or ``FEDMED_PASSPHRASE_FILE``), or none is needed.
        proxy: URL of the HTTP proxy through which a client calls out.
        max_body_megabytes: largest request body that the gateway takes.
        requests_per_second: of one site, on average; more are told to wait.
    """

    address: str = "127.0.0.1:8443"
    credentials: str = "certificates/server"
    passphrase_file: str | None = None
    proxy: str | None = None
    max_body_megabytes: int = 64
    requests_per_second: float = 200.0


@dataclass(frozen=True)
class SiteConfig:
    """What a site decides for itself; a server cannot change it.

    Attributes:
        name: the site's name in the consortium.
        state: folder of the ledger and the egress record; ``null`` is ``state/NAME``.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        threads: CPU threads of local training; ``null`` is half of the cores, at most 8.
        study: name of the patients' account in the ledger; runs on the same patients share it.
        max_epsilon: refuse a round that would pass it; ``null`` is no limit.
        max_delta: refuse a plan that states epsilon at a larger delta.
        require_privacy: refuse a plan without differential privacy.
        allow_central_privacy: take part in plans where the server, not this site, adds the noise.
        policy: file with the site's policy (see ``docs/policy.yaml``); ``null`` is the default one.
    """

    name: str = ""
    state: str | None = None
    device: str = "auto"
    threads: int | None = None
    study: str = "main"
    max_epsilon: float | None = 20.0
    max_delta: float = 1e-5
    require_privacy: bool = False
    allow_central_privacy: bool = False
    policy: str | None = None


@dataclass(frozen=True)
class SimulationConfig:
    """A whole federation on one machine.

    Attributes:
        engine: ``in_process`` or ``ray``.
        workers: sites that work at the same time; ``null`` is one for each CPU core.
        compare: also train local-only models and one on the pooled images.
        seeded_noise: privacy noise from the seed, for tests: voids the guarantee.
    """

    engine: Engine = Engine.in_process
    workers: int | None = None
    compare: bool = False
    seeded_noise: bool = False


@dataclass(frozen=True)
class TrackingConfig:
    """What a run writes.

    Attributes:
        folder: parent of the run folders.
        report: write plots and ``report.html`` at the end.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
    """

    folder: str = "outputs"
    report: bool = True
    keep_checkpoints: int = 2
