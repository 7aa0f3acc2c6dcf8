"""``fedmed data`` as a hospital's engineer runs it."""

from fedmed.cli import main


def test_phantom_writes_archives_that_check_accepts(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["data", "phantom", str(folder), "--sites", "2", "--patients", "6"]) == 0
    assert {path.parent.name for path in folder.glob("*/manifest.csv")} == {"alder", "birch"}
    assert main(["data", "check", str(folder), "preprocessing.size=32"]) == 0
    shown = capsys.readouterr().out
    assert "alder:" in shown
    assert "images found; used:" in shown


def test_phantom_refuses_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "precious").write_text("data")
    assert main(["data", "phantom", str(tmp_path)]) == 4
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "data"


def test_check_names_each_row_that_is_left_out_and_no_patient(archives, tmp_path, capsys):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(archives / "alder", data / "alder")
    victim = next((data / "alder" / "images").glob("*.dcm"))
    victim.write_bytes(victim.read_bytes()[:400])
    assert main(["data", "check", str(data)]) == 0
    shown = capsys.readouterr().out
    assert victim.name in shown
    lines = (data / "alder" / "manifest.csv").read_text().splitlines()
    patients = {line.split(",")[2] for line in lines[1:]}
    assert not any(patient in shown.replace(victim.name, "") for patient in patients)


def test_check_of_an_empty_cohort_says_where_the_images_went(archives, tmp_path, capsys):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(archives / "cedar", data / "cedar")
    for path in (data / "cedar" / "images").glob("*.dcm"):
        path.unlink()
    assert main(["data", "check", str(data)]) == 4
    shown = capsys.readouterr().err
    assert "missing" in shown
    assert "no training image is left" in shown


def test_a_folder_without_archives_is_a_clear_error(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path)]) == 4
    assert "fedmed data phantom" in capsys.readouterr().err
