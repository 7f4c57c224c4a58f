"""`emask bench`: one run with tiny models, and errors a user can act on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from onnx import TensorProto, helper
from PIL import Image
from typer.testing import CliRunner

from emask.bench import card, protocol, strengths
from emask.bench.peers.advfaces import KIND, PerturbationGenerator
from emask.bench.report import write_page
from emask.cli.bench import Turn, bench, turns
from emask.engine import GraphEngine
from emask.errors import UsageError

app = typer.Typer()
app.command()(bench)


@pytest.fixture
def bare_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with a manifest only."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("EMASK_MODELS_DIR", str(folder))
    entry = {"file": "generator.onnx", "sha256": "", "strengths": {"medium": {"w": 0.1, "eps": 10.0}}}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "models": {"generator": entry}, "targets": {}}))
    return folder


def run_bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes is not None else "")


def test_data_and_recognizers_are_required() -> None:
    assert run_bench()[0] == 2


def test_missing_model_is_one_line_and_exit_code_5(bare_models: Path, tmp_path: Path) -> None:
    code, output = run_bench("--data", str(tmp_path), "--recognizers", str(tmp_path))
    assert code == 5 and "generator.onnx is missing" in output and "Traceback" not in output


def test_unknown_strength_is_a_usage_error(bare_models: Path, tmp_path: Path) -> None:
    code, output = run_bench("--data", str(tmp_path), "--recognizers", str(tmp_path), "--strength", "huge")
    assert code == 2 and "huge" in output


def test_folder_without_recognizers(bare_models: Path, tmp_path: Path) -> None:
    for kind in ("generator", "restorer", "recognizer"):
        (bare_models / f"{kind}.onnx").write_bytes(b"x")
    manifest = json.loads((bare_models / "manifest.json").read_text())
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # sha256 of "x"
    for kind in ("generator", "restorer", "recognizer"):
        manifest["models"].setdefault(kind, {"file": f"{kind}.onnx"})["sha256"] = digest
    (bare_models / "manifest.json").write_text(json.dumps(manifest))
    code, output = run_bench("--data", str(tmp_path), "--recognizers", str(tmp_path))
    assert code == 5 and "no recognizers.json" in output


PEOPLE = Path(__file__).resolve().parents[1] / "data" / "people"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos each of 24 "people", all kept out of training: six synthetic ones, also mirrored and tinted."""
    folder = tmp_path_factory.mktemp("data")
    names = []
    for first in sorted(PEOPLE.glob("*_1.jpg")):
        for version in range(4):
            name = first.stem.removesuffix("_1") + "abcd"[version]
            names.append(name)
            (folder / name).mkdir()
            for number in (1, 2):
                photo = Image.open(first.with_name(first.name.replace("_1.", f"_{number}.")))
                pixels = np.asarray(photo.reduce(2))  # faces are found in half the time
                if version % 2:
                    pixels = pixels[:, ::-1]
                if version > 1:
                    pixels = (pixels * np.array([0.7, 0.85, 1.0])).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{name}_{number:04d}.jpg", quality=95)
    half = len(names) // 2
    rows = [f"{n}\t1\t2" for n in names[:half]] + [f"{names[half - 1]}\t1\t{n}\t1" for n in names[half:]]
    others = ["somebody\t1\t2"] * (len(rows) * 9)
    (folder / "lfw_pairs.txt").write_text(f"10\t{half}\n" + "\n".join([*others, *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recognizer of fold B, which compares mean colours of blocks, and the card of an absent one of fold A."""
    folder = tmp_path_factory.mktemp("judges")
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["data"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
            helper.make_node("Flatten", ["pooled"], ["out"]),
        ],
        "judge",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["B", 3, 112, 112])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", 147])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "blocks.onnx"))
    card = {"size": [112, 112], "mean": [127.5] * 3, "std": [127.5] * 3, "input_name": "data"}
    cards = [{"name": n, "file": f"{n}.onnx", "fold": f, **card} for n, f in (("blocks", "B"), ("absent", "A"))]
    (folder / "recognizers.json").write_text(json.dumps({"recognizers": cards}), encoding="utf-8")
    return folder


def test_a_run_writes_document_and_table(
    models: Path, data: Path, judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada").touch()  # is not the built-in target that nobody named
    arguments = ["--data", str(data), "--recognizers", str(judges), "--faces", "5", "--unseen-targets", "2"]
    arguments += ["--device", "cpu", "--json", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert document["faces"] == 5 and list(document["targets"]) == ["ada"] and list(document["judges"]) == ["blocks"]
    assert document["settings"]["w"] == 0.3 and document["settings"]["eps"] == 20.0
    assert set(document["models"]) == {"generator", "restorer", "recognizer"}
    assert set(document["thresholds"]["blocks"]) == {"0.1", "0.01", "0.001"}
    # the tiny generator's mask is visible in the figures, and the tiny restorer takes most of it off
    entry = document["erasing"]["default target"]
    assert 25 < entry["protected"]["psnr_mean"] < document["clean"]["after_jpeg"]["psnr_mean"] - 1
    assert entry["restored"]["psnr_mean"] > entry["protected"]["psnr_mean"] + 1
    assert "blocks" in (tmp_path / "out" / "bench.md").read_text()
    with np.load(tmp_path / "out" / "similarities.npz") as cosines:
        # the rate is the share of these that reach the threshold
        given = cosines["ada/blocks/protected-given"]
        rate = document["targets"]["ada"]["recognizers"]["blocks"]["impersonation_given"]["0.1"]
        assert len(given) == 5 and int((given >= document["thresholds"]["blocks"]["0.1"]).sum()) == rate["hits"]
        assert {f"ada/blocks/{p}-{w}" for p in ("clean", "restored") for w in ("same", "owner")} <= set(cosines)


def test_a_photo_as_target_has_another_one_too(
    models: Path, data: Path, judges: Path, tmp_path: Path, face: np.ndarray
) -> None:
    """Under its file's name; the twin: a folder without that name."""
    (tmp_path / "others").mkdir()
    Image.fromarray(face).save(tmp_path / "mine.jpg", quality=95)
    Image.fromarray(face[:, ::-1]).save(tmp_path / "others" / "mine.jpg", quality=95)
    always = ["--data", str(data), "--recognizers", str(judges), "--faces", "3", "--unseen-targets", "1", "--json"]
    always += ["--device", "cpu", "--refine", "0", "--target", str(tmp_path / "mine.jpg"), "--target-others"]
    for folder, there in ((tmp_path / "others", True), (data, False)):
        result = CliRunner().invoke(app, [*always, str(folder)])
        assert result.exit_code == 0, result.output
        figures = json.loads(result.stdout)["targets"]["mine"]["recognizers"]["blocks"]
        assert ("impersonation_other" in figures) == there


def test_the_scores_expose_methods_that_do_nothing(models: Path, data: Path, judges: Path, tmp_path: Path) -> None:
    """Protecting nothing scores as clean photos do; a grey square satisfies no figure, though it matches no target."""
    always = ["--data", str(data), "--recognizers", str(judges), "--faces", "4", "--unseen-targets", "2", "--json"]
    documents = {}
    for method in ("nothing", "grey-square"):
        result = CliRunner().invoke(app, [*always, "--device", "cpu", "--method", method, "--handling", "jpeg:75"])
        assert result.exit_code == 0, result.output
        documents[method] = json.loads(result.stdout)
        assert documents[method]["settings"]["method"] == method and documents[method]["models"] == {}
        assert list(documents[method]["handling"]) == ["jpeg:75"]
        figures = documents[method]["unseen"]["recognizers"]["blocks"]
        for figure in ("impersonation_given", "impersonation_other", "dodging_other", "dodging_same"):
            assert figures[figure] == figures[f"{figure}_clean"]
    erased = [d["erasing"]["unseen targets"] for d in documents.values()]
    same = [entry["recognizers"]["blocks"]["reverified_same"]["0.01"]["value"] for entry in erased]
    assert same[0] > same[1] == 0.0
    assert erased[1]["restored"]["psnr_mean"] < 20


def test_unseen_targets_alone(models: Path, data: Path, judges: Path, tmp_path: Path) -> None:
    """`--target none`; the twins: beside another target, or without unseen ones, it is refused."""
    always = ["--data", str(data), "--recognizers", str(judges), "--device", "cpu", "--method", "nothing", "--json"]
    always += ["--faces", "3", "--target", "none"]
    result = CliRunner().invoke(app, [*always, "--unseen-targets", "2", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert document["targets"] == {} and document["default_target"] is None and document["unseen"]
    assert list(document["erasing"]) == ["unseen targets"]
    assert "unseen targets" in (tmp_path / "out" / "bench.md").read_text()
    assert card.main([str(tmp_path / "out" / "bench.json"), str(tmp_path / "README.md")]) == 2
    assert not (tmp_path / "README.md").exists()
    for said in (["--unseen-targets", "0"], ["--unseen-targets", "2", "--target", "ada"]):
        result = CliRunner().invoke(app, [*always, *said])
        assert isinstance(result.exception, UsageError) or result.exit_code == 2


def test_a_quick_run_is_a_small_one(models: Path, data: Path, judges: Path) -> None:
    """Four unseen targets of the 24 people leave twenty; what is said outright holds."""
    always = ["--data", str(data), "--recognizers", str(judges), "--device", "cpu", "--method", "nothing", "--json"]
    for said, expected in (([], (20, 4)), (["--faces", "2", "--unseen-targets", "1"], (2, 1))):
        result = CliRunner().invoke(app, [*always, "--quick", *said])
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert (document["faces"], len(document["unseen_targets"])) == expected
        assert list(document["targets"]) == ["ada"]
        assert {"python", "numpy", "torch"} <= document["versions"].keys()


def test_targets_by_several_photos(models: Path, data: Path, judges: Path) -> None:
    """Nobody here has three photos; the twin asks for two, which all have."""
    always = ["--data", str(data), "--recognizers", str(judges), "--faces", "2", "--unseen-targets", "2"]
    always += ["--device", "cpu", "--refine", "0", "--target", "none", "--json"]
    refused = CliRunner().invoke(app, [*always, "--target-photos", "2"])
    assert refused.exit_code == 2 and "0 people kept out of training have 3 photos" in refused.output
    fine = CliRunner().invoke(app, [*always, "--target-min-photos", "2"])
    assert fine.exit_code == 0, fine.output
    document = json.loads(fine.stdout)
    assert document["settings"]["target_photos"] == 1 and document["settings"]["target_min_photos"] == 2
    assert all(target["more"] == [] for target in document["unseen_targets"])


def test_methods_side_by_side(models: Path, data: Path, judges: Path, tmp_path: Path) -> None:
    """Each as by itself, on the same photos; one table for all of them."""
    always = ["--data", str(data), "--recognizers", str(judges), "--faces", "4", "--unseen-targets", "2"]
    always += ["--device", "cpu", "--refine", "0"]
    both = ["--method", "nothing", "--method", "emask", "--eps", "8", "--json", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, [*always, *both])
    assert result.exit_code == 0, result.output
    documents = json.loads(result.stdout)["methods"]
    assert list(documents) == ["nothing", "emask"] and documents["emask"]["settings"]["eps"] == 8
    for name, document in documents.items():
        assert document == json.loads((tmp_path / name / "bench.json").read_text())
        assert document["photos"] == documents["nothing"]["photos"]
    single = CliRunner().invoke(app, [*always, "--method", "emask", "--eps", "8", "--json"])
    assert json.loads(single.stdout) == documents["emask"]
    costs = json.loads((tmp_path / "cost.json").read_text())
    assert all(cost["protect"]["faces"] == 8 and cost["protect"]["ms_per_face"] > 0 for cost in costs.values())
    table = (tmp_path / "bench.md").read_text()
    assert "target_photos" not in table and "no settings" in table  # what all have in common is said once
    rows = [line for line in table.splitlines() if line.startswith(("| clean photos", "| nothing", "| emask"))]
    assert len(rows) == 2 + 3 * 3  # PSNR, then three rates of one judge
    nothing, emask = (row.split(" | ") for row in rows[:2])
    assert float(nothing[1]) > float(emask[1]) + 1  # PSNR
    clean, nothing = (row.split(" | ") for row in rows[2:4])
    assert [cell.split(" [")[0] for cell in nothing[1:5]] == clean[1:5]


def test_methods_side_by_side_on_the_first_photos(
    models: Path, data: Path, judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very document of a run with so many --faces, and emask's of all; gone on with after an interruption."""
    always = ["--data", str(data), "--recognizers", str(judges), "--unseen-targets", "2", "--target", "none"]
    always += ["--device", "cpu", "--refine", "0", "--json", "--method", "emask"]
    every = ["--faces", "5", "--handling", "jpeg:75"]
    out = tmp_path / "out"
    side_by_side = [*always, *every, "--method", "nothing", "--peer-faces", "3", "-o", str(out)]
    run = protocol.run

    def stopped_on_all(method: protocol.Method, selection: protocol.Selection, *rest: Any, **named: Any) -> Any:
        if len(selection.sources) == 5:
            raise UsageError("stopped")
        return run(method, selection, *rest, **named)

    monkeypatch.setattr(protocol, "run", stopped_on_all)
    assert CliRunner().invoke(app, side_by_side).exit_code == 2
    before = json.loads((out / "emask" / "cost.json").read_text())["emask"]
    assert before["protect"]["faces"] == 3 and not (out / "bench.json").exists()
    monkeypatch.setattr(protocol, "run", run)
    both = CliRunner().invoke(app, [*side_by_side, "--resume"])
    assert both.exit_code == 0, both.output
    document = json.loads(both.stdout)
    assert document["all"]["emask"]["faces"] == 5 and list(document["all"]["emask"]["handling"]) == ["jpeg:75"]
    assert json.loads((out / "all" / "bench.json").read_text()) == document["all"]["emask"]
    few = CliRunner().invoke(app, [*always, "--method", "nothing", "--faces", "3"])
    assert document["methods"] == json.loads(few.stdout)["methods"]
    assert document["methods"]["emask"]["photos"] == document["all"]["emask"]["photos"][:3]
    costs = json.loads((out / "cost.json").read_text())
    assert costs["emask"] == before  # what was known is not lost
    assert costs["all"]["emask"]["protect"]["faces"] == 5
    assert (out / "bench.md").read_text().count("\n# emask on all 5 photos\n") == 1
    pytest.importorskip("matplotlib")
    page = write_page(out / "bench.json").read_text()
    assert "emask on all 5 photos: all figures" in page
    pictures = page.count("<img ")
    (out / "all" / "similarities.npz").unlink()
    assert write_page(out / "bench.json").read_text().count("<img ") == pictures - 1


def test_no_more_photos_than_there_are_side_by_side() -> None:
    """Then emask's row is of all of them, and nothing is measured twice."""
    methods = ["emask", "nothing"]
    each = [Turn("emask", "emask"), Turn("nothing", "nothing")]
    assert turns(methods, 3, None) == turns(methods, 3, 3) == turns(methods, 3, 4) == each
    few = [Turn("emask", "emask", 2), Turn("nothing", "nothing", 2)]
    assert turns(methods, 3, 2) == [*few, Turn("all", "emask")]


@pytest.mark.parametrize("methods", [["emask"], ["nothing"], ["nothing", "fgsm"]])
def test_a_part_of_the_photos_is_for_emask_beside_others(
    models: Path, judges: Path, data: Path, methods: list[str]
) -> None:
    named = [word for name in methods for word in ("--method", name)]
    code, output = run_bench("--data", str(data), "--recognizers", str(judges), "--peer-faces", "3", *named)
    assert code == 2 and "is for emask beside other methods" in output and "hint: " in output


@pytest.mark.parametrize(
    ("option", "value", "said"), [("--method", "photoshop", "no method"), ("--handling", "jpeg:999", "out of range")]
)
def test_unknown_methods_and_handlings_are_refused(
    models: Path, data: Path, judges: Path, option: str, value: str, said: str
) -> None:
    result = CliRunner().invoke(app, ["--data", str(data), "--recognizers", str(judges), option, value])
    assert result.exit_code == 2 and said in result.output


@pytest.mark.parametrize(("method", "option"), [("sibling", "--classifier"), ("advfaces", "--advfaces")])
def test_a_peer_without_the_file_it_needs_is_refused_at_once(
    models: Path, data: Path, judges: Path, method: str, option: str
) -> None:
    """Before recognizers are opened, of which one is missing here."""
    always = ["--data", str(data), "--recognizers", str(judges), "--method", "nothing", "--method", method]
    for more, said in (([], f"{method} needs {option} FILE"), ([option, "nowhere.pt"], "no file nowhere.pt")):
        code, output = run_bench(*always, *more)
        assert code == 2 and said in output and "hint: " in output and "Traceback" not in output


def test_advfaces_needs_no_recognizer_but_judges(models: Path, data: Path, judges: Path, tmp_path: Path) -> None:
    """The white box of these judges is missing; what the generator was trained with is what the figures warn of."""
    torch.manual_seed(0)
    generator = PerturbationGenerator(2, 1, ["blocks"])
    config = {"width": 2, "blocks": 1, "surrogates": ["blocks"]}
    torch.save({"kind": KIND, "config": config, "generator": generator.state_dict()}, tmp_path / "advfaces.pt")
    always = ["--data", str(data), "--recognizers", str(judges), "--device", "cpu", "--json", "--faces", "2"]
    always += ["--unseen-targets", "1", "--method", "advfaces", "--advfaces", str(tmp_path / "advfaces.pt")]
    result = CliRunner().invoke(app, [*always, "--eps", "4"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["settings"]["surrogates"] == ["blocks"]
    assert document["settings"]["parameters"] == {"eps": 4.0, "norm": "l2"}
    assert document["models"]["advfaces"]["file"] == "advfaces.pt"
    assert any("blocks is a white box" in warning for warning in document["warnings"])


def test_with_white_boxes_of_fold_b_those_of_fold_a_judge(models: Path, data: Path, judges: Path) -> None:
    """The one of fold A is not there; the twin, fold A, is every other test."""
    code, output = run_bench("--data", str(data), "--recognizers", str(judges), "--fold", "B", "--method", "nothing")
    assert code != 0 and "absent.onnx" in output and "Traceback" not in output


def test_white_boxes_of_a_folder_of_their_own(
    models: Path, data: Path, judges: Path, tmp_path: Path,
    make_white_boxes: Callable[[Path, dict[str, int]], None],
) -> None:  # fmt: skip
    """The twin: without it a peer asks for those of the judges' folder, of which there is one."""
    make_white_boxes(tmp_path, {"coarse": 28, "fine": 16})
    always = ["--data", str(data), "--recognizers", str(judges), "--device", "cpu", "--json", "--method", "pgd"]
    always += ["--faces", "2", "--unseen-targets", "1", "--target", "none"]
    result = CliRunner().invoke(app, [*always, "--white-boxes", str(tmp_path)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["settings"]["surrogates"] == ["coarse", "fine"] and list(document["judges"]) == ["blocks"]
    code, output = run_bench(*always)
    assert code != 0 and "name two or more surrogates" in output


def test_too_few_people_is_a_usage_error(models: Path, data: Path, judges: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for name in ("inesa", "junea", "kiraa", "liama"):
        (few / name).mkdir(parents=True)
        for photo in (data / name).iterdir():
            (few / name / photo.name).write_bytes(photo.read_bytes())
    (few / "lfw_pairs.txt").write_bytes((data / "lfw_pairs.txt").read_bytes())
    arguments = ["--data", str(few), "--recognizers", str(judges), "--device", "cpu", "--unseen-targets"]
    code, output = run_bench(*arguments, "1")
    assert code == 2 and "too few" in output and "Traceback" not in output
    code, output = run_bench(*arguments, "4")
    assert code == 2 and "leave none" in output


def test_an_interrupted_run_goes_on_and_is_not_begun_anew(
    models: Path, data: Path, judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unseen targets are not reached at first; then the built-in one is taken as it was. Without --resume: refused."""
    from emask.bench.resume import KeptParts

    arguments = ["--data", str(data), "--recognizers", str(judges), "--faces", "3", "--unseen-targets", "2"]
    arguments += ["--device", "cpu", "--json", "-o", str(tmp_path / "out")]
    put = KeptParts.put

    def put_and_stop(self: KeptParts, *rest: object) -> None:
        put(self, *rest)  # type: ignore[arg-type]
        raise UsageError("stopped")

    monkeypatch.setattr(KeptParts, "put", put_and_stop)
    assert CliRunner().invoke(app, arguments).exit_code == 2
    monkeypatch.setattr(KeptParts, "put", put)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2 and "holds an interrupted run" in again.output
    taken: list[str] = []
    get = KeptParts.get

    def watched(self: KeptParts, label: str) -> object:
        found = get(self, label)
        taken.extend(self.taken[-1:] if found is not None else [])
        return found

    monkeypatch.setattr(KeptParts, "get", watched)
    resumed = CliRunner().invoke(app, [*arguments, "--resume"])
    assert resumed.exit_code == 0 and taken == ["ada"], resumed.output
    document = json.loads(resumed.stdout)
    assert document["targets"]["ada"] and document["unseen"] and not (tmp_path / "out" / ".parts").exists()


def test_curves_go_on_where_they_were_interrupted(
    models: Path, data: Path, judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first budget is taken as it was, the second one measured; the curves are those of one go."""
    always = ["--data", str(data), "--recognizers", str(judges), "--faces", "3", "--unseen-targets", "2"]
    always += ["--device", "cpu", "--refine", "0", "--eps", "8", "20", "--w"]
    assert strengths.main([*always, "-o", str(tmp_path / "one")]) == 0
    run, measured = protocol.run, 0

    def run_and_stop(*rest: object, **named: object) -> object:
        nonlocal measured
        if measured:
            raise UsageError("stopped")
        measured += 1
        return run(*rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(protocol, "run", run_and_stop)
    folder = tmp_path / "two"
    assert strengths.main([*always, "-o", str(folder)]) == 2
    assert len(json.loads((folder / "curves.json").read_text())) == 1
    monkeypatch.setattr(protocol, "run", run)
    assert strengths.main([*always, "-o", str(folder)]) == 2  # without --resume
    protected = []
    protect = GraphEngine.protect

    def watched(self: GraphEngine, crops: np.ndarray, *rest: object, **named: float) -> np.ndarray:
        protected.append(named["eps"])
        return protect(self, crops, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(GraphEngine, "protect", watched)
    assert strengths.main([*always, "--resume", "-o", str(folder)]) == 0
    assert set(protected) == {20.0} and not (folder / ".parts").exists()
    assert (folder / "curves.json").read_text() == (tmp_path / "one" / "curves.json").read_text()
