"""What the documents say is what the program does."""

import contextlib
import io
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist.data import Dataset
from parity.command import main as parity
from parity.mistakes import CATALOGUE
from parity.mistakes.page import document
from tests.conftest import ROOT, here
from tests.tools import documents

README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
GENERATED = ROOT / "docs" / "mistakes.md"
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *DOCS]}
PAGES |= {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md")}
WRITTEN = [name for name in PAGES if name != "docs/mistakes.md"]


def test_every_page_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 150
    for path in DOCS:
        assert path == GENERATED or len(path.read_text().splitlines()) <= 250, path


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for link, anchor in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", PAGES[name]):
        if re.match("https?://", link):
            continue
        target = path.parent / link if link else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}, anchor


@pytest.mark.parametrize("name", WRITTEN)
def test_a_page_quotes_files_as_they_are(name: str) -> None:
    for file, excerpt in documents.excerpts(PAGES[name]):
        assert excerpt in (ROOT / file).read_text(), (file, excerpt)


def test_the_guide_quotes_both_sides() -> None:
    quoted = [file for file, _ in documents.excerpts(PAGES["docs/porting.md"])]
    assert sum(file.startswith("fmnist_torch/") for file in quoted) > 5
    assert sum(file.startswith("fmnist_jax/") for file in quoted) > 5


def test_the_page_of_mistakes_is_that_of_the_catalogue() -> None:
    assert GENERATED.read_text() == document(CATALOGUE)


def test_the_draft_s_mistakes_are_those_of_the_page() -> None:
    (diff,) = re.findall(r"<!-- mistakes: \S+ -->\n```diff\n(.*?)```", PAGES["docs/judging.md"], re.DOTALL)
    wrong, right = documents.made(*documents.OUTPUTS["draft"]), documents.made()
    for line in diff.splitlines():
        assert f"{line[2:]}\n" in (wrong if line[0] == "-" else right), line


@pytest.mark.parametrize(("name", "stages"), [("gelu", ["outputs"])])
def test_an_output_of_the_judge_is_what_it_says_today(name: str, stages: list[str]) -> None:
    shown = dict(documents.outputs(README))[name]
    assert documents.key_lines(documents.judged(name, "--only", *stages)) == documents.key_lines(shown)
    assert "\n   = cause: " in shown


def test_the_benchmark_s_figures_are_those_of_its_file() -> None:
    (file,) = set(re.findall(r"\]\((benchmarks/results/[^)]+\.md)\)", README))
    rows = [re.split(r" *\| *", line.strip("| ")) for line in (ROOT / file).read_text().splitlines()]
    told = {row[0]: row for row in rows if len(row) == 9}
    section = README[README.index("## Speed") : README.index("## The house")]
    figures = [re.split(r" *\| *", line.strip("| ")) for line in section.splitlines() if line.startswith("|")][2:]
    assert len(figures) == 8
    assert figures == [[told[row[0]][at] for at in (0, 1, 2, 4, 6, 7)] for row in figures]


def test_the_lessons_are_those_of_their_file() -> None:
    page = PAGES["docs/many-models.md"]
    lessons = (ROOT / "docs" / "lessons.txt").read_text().splitlines()
    assert len(lessons) == 1 + 8 + 7
    for line in lessons:
        assert line in page or f"L{line[1:]}" in page, line
    # And the file's accuracy of the post's network is what the README says that runs end at.
    (twenty,) = [line for line in lessons if line.startswith("3       16 units, 20 epochs")]
    (ends,) = re.findall(r"end at ([\d.]+) %", README)
    assert abs(float(twenty.split()[6]) - float(ends)) < 1


def test_the_map_of_the_house_is_complete() -> None:
    block = README[README.index("## The house") :].split("```")[1]
    named = set(re.findall(r"^(\w+)/", block, re.MULTILINE))
    assert named == {path.parent.name for path in ROOT.glob("*/*.py")} | {"docs"}
    inside = set(re.findall(r"^    (\w+)/? ", block, re.MULTILINE)) | {"cases"}
    assert {path.name for path in (ROOT / "parity").iterdir() if (path / "__init__.py").exists()} <= inside


MODULES = sorted(set(re.findall(r"python -m ((?:fmnist|parity|benchmarks|tests)[\w.]*)", "\n".join(PAGES.values()))))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", MODULES)
def test_every_command_explains_itself_in_80_columns(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [module, "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    said = capsys.readouterr().out
    assert not ended.value.code
    assert max(map(len, said.splitlines())) <= 80
    assert "usage: " in said


def commands(page: str) -> Iterator[str]:
    """What a page tells its reader to type."""
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        yield from re.findall(r"^\$ (.*)", block, re.MULTILINE)


LEFT_OUT = {
    r"(python3 -m venv|\. \.venv|pip|make|pre-commit) ?": "installs, or runs all of something",
    r"diff <": "test_mirror compares them line by line",
    r"srun|.* --process ": "needs several processes: tests/tools/hosts.py starts them",
    r"python -m tensorboard": "a package that is not ours",
    r"python -m fmnist_jax.lessons": "a minute; test_lessons tries it on less",
    r"python -m (tests|benchmarks)": "campaigns",
    r"python -m parity$": "minutes; tests of the pair judge it",
}
ADDED = {
    r"fmnist_\w+\.train (?!.*--epochs)": ("--epochs", "1"),
    r"fmnist_jax\.sweep .*--seeds": ("--epochs", "1"),
    r"fmnist_jax\.sweep (?!.*--seeds)": ("--epochs", "1", "--seeds", "0-1"),
    r"parity reference.py port.py ": ("--quick", "--only", "load"),
    r"parity docs/examples/reference.py .*--quick": ("--only", "load", "loss", "gradients"),
}
"""What makes a command that is run as it is written short enough for a test."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> Path:
    """Where a reader is: with the examples, and two photographs."""
    for place in (tmp_path, tmp_path / "docs" / "examples"):
        shutil.copytree(documents.EXAMPLES, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name, image in zip(("shoe.jpg", "shirt.png"), dataset.test.images, strict=False):
        Image.fromarray(np.kron(image, np.ones((4, 4), np.uint8))).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", WRITTEN)
def test_the_commands_of_a_page_do_what_it_says(name: str, folder: Path) -> None:
    if name == "docs/judging.md":
        (folder / "port.py").unlink()  # which it writes
    for typed in commands(PAGES[name]):
        if any(re.match(pattern, typed) for pattern in LEFT_OUT):
            continue
        python, _, module, *arguments = shlex.split(typed)
        assert python == "python", typed
        # Runs are 19 epochs shorter than the page's.
        arguments = [str(int(one) - 19) if one.isdigit() and int(one) > 19 else one for one in arguments]
        for pattern, added in ADDED.items():
            arguments += added if re.match(pattern, f"{module} {' '.join(arguments)} ") else ()
        if module == "parity":
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                code = parity(arguments)
        else:
            done = here(module, *arguments)
            code, out, err = done.returncode, io.StringIO(done.stdout), io.StringIO(done.stderr)
        assert code == 0, (typed, err.getvalue())
        assert out.getvalue()


def test_every_make_target_of_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([\w.]+)`|^\$ make ([\w./]+)", "\n".join(PAGES.values()), re.MULTILINE)):
        name = "".join(target)
        assert re.search(rf"^{re.escape(name)}:|^\$\(INSTALLED\):", makefile, re.MULTILINE), name


def test_the_citation_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"version: {version[1]}" in Path(ROOT / "CITATION.cff").read_text()
