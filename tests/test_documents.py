"""What the documents say is what the program does."""

import re
import runpy
from pathlib import Path

import pytest

from fmnist.data import Dataset
from tests.conftest import ROOT
from tests.tools import guide

README = (ROOT / "README.md").read_text()
DOCUMENTS = ["README.md", "docs/porting.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def test_the_guide_quotes_the_files_as_they_are() -> None:
    quoted = list(guide.excerpts(guide.GUIDE.read_text()))
    assert len(quoted) > 12
    for file, excerpt in quoted:
        assert excerpt in (ROOT / file).read_text(), (file, excerpt)


def without_shares(text: str) -> str:
    return re.sub(r" *[\d.]+ %", " %", text)


def test_the_guide_s_outputs_are_what_the_suite_says(fashion_mnist: Dataset) -> None:
    text = guide.GUIDE.read_text()
    # How large an error is, and how many values differ by one, is the processor's; what is said of them is not.
    assert without_shares(guide.fill(text, fashion_mnist)) == without_shares(text)
    ends = re.findall(r"(agrees: |the first divergence is `(?:\w+)`)", text)
    assert ends[-4:] == [
        "the first divergence is `decode`",
        "the first divergence is `gradients`",
        "the first divergence is `epoch`",
        "agrees: ",
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), link


def test_the_benchmark_s_tables_are_those_of_its_file() -> None:
    (file,) = set(re.findall(r"\]\((benchmarks/results/[^)]+\.md)\)", README))
    measured = (ROOT / file).read_text().splitlines()
    section = README[README.index("## Fast") : README.index("## Many models at once")]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * 7
    for row in rows:
        assert row in measured


def test_the_lessons_are_those_of_their_file() -> None:
    lessons = (ROOT / "docs" / "lessons.txt").read_text().splitlines()
    assert len(lessons) == 1 + 8 + 6
    section = README[README.index("## The post's lessons") :]
    for line in lessons:
        assert line in section or f"L{line[1:]}" in section, line
    # And the file's accuracy of the post's network is that of the parity report's trends: what runs end at today.
    (twenty,) = [line for line in lessons if line.startswith("3       16 units, 20 epochs")]
    assert 77 < float(twenty.split()[6]) < 78


def test_the_map_of_the_house_is_complete() -> None:
    section = README[README.index("## How the pieces fit") :]
    block = section.split("```")[1]
    for folder in ("fmnist", "fmnist_torch", "fmnist_jax", "parity"):
        part = block[block.index(f"{folder}/") :]
        part = re.split(r"\n(?=\w)", part)[0]
        named = set(re.findall(r"^    (\w+\.py)", part, re.MULTILINE))
        files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py", "__main__.py"}
        assert named == files, folder


COMMANDS = sorted(
    set(re.findall(r"python -m ([\w.]+(?: faults)?)", "\n".join((ROOT / name).read_text() for name in DOCUMENTS)))
)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_documents_explains_itself_in_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *arguments = name.split()
    monkeypatch.setattr("sys.argv", [module, *arguments, "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    said = capsys.readouterr().out
    assert not ended.value.code
    assert max(map(len, said.splitlines())) <= 80
    assert "usage: " in said


def test_every_make_target_of_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    for target in set(re.findall(r"`make ([\w.]+)`|^\$ make ([\w./]+)", text, re.MULTILINE)):
        name = "".join(target)
        assert re.search(rf"^{re.escape(name)}:|^\$\(INSTALLED\):", makefile, re.MULTILINE), name


def test_the_faults_of_the_readme_are_those_of_the_matrix() -> None:
    document = (ROOT / "parity" / "FAULTS.md").read_text()
    noticed = re.findall(r"\| (\d+) of (\d+) \|", README)
    assert noticed
    for count, total in noticed:
        assert f"{count} of {total}" in document, (count, total)


def test_the_citation_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"version: {version[1]}" in Path(ROOT / "CITATION.cff").read_text()
