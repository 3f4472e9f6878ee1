"""What a verdict says: one golden text for every kind of message."""

import json
import math
import textwrap

import pytest

from parity.verdict.comparison import STAGES, Comparison, Explanation, Verdict
from parity.verdict.report import as_json, as_markdown, report, sentence

COMMAND = "python -m parity reference.py port.py"
PLACES = {"norm1": "norm1: LayerNorm (model.py:31)", "outputs/hidden": "encoder: Encoder (model.py:12)"}
GOOD = (
    Comparison("load", "as given", "state/fc.weight", 128, 0, 0.0),
    Comparison("load", "as given", "state/norm1.weight", 8, 0, 0.0),
    Comparison("outputs", "shaken, training mode", "outputs/logits", 640, 0.31, 0.062),
    Comparison("loss", "shaken", "loss", 1, 0.002, None),
)
NORM = Comparison("gradients", "shaken", "gradients/norm1.weight", 64, 251.3, 0.06, (3,), 0.0123456, 0.0124, 2.1e-7, 3)
EPSILON = Explanation(
    "F012",
    "layer-norm-epsilon",
    "norm1 (model.py:31)",
    "the port's norm has epsilon 1e-6, the reference's 1e-5",
    "nn.LayerNorm()",
    "nn.LayerNorm(epsilon=1e-5)",
    0.2,
)


def said(*compared: Comparison, explanations: tuple[tuple[Explanation, ...], ...] = (), command: str = COMMAND) -> str:
    """What stands below the table."""
    text = report(Verdict("reference.py", "port.py", compared, explanations, places=PLACES), command)
    return text[text.index("error") :]


def golden(text: str) -> str:
    return textwrap.dedent(text).strip()


def test_agreement() -> None:
    verdict = Verdict(
        "reference.py", "port.py", GOOD, (), ("init: the port offers none",), ("dropout is off on both sides",)
    )
    assert report(verdict, COMMAND) == golden(
        """
        stage    case                   compared        values  largest ratio  reference's
        load     as given               state (2)          136          equal        equal  pass
        outputs  shaken, training mode  outputs/logits     640           0.31         0.06  pass
        loss     shaken                 loss                 1          0.002            -  pass

        not judged: init: the port offers none
        note: dropout is off on both sides
        agrees: 4 comparisons in 3 stages, 777 values
        """
    )


def test_a_difference_that_is_explained() -> None:
    fine = Comparison("gradients", "shaken", "gradients/fc.weight", 128, 0.2, 0.1)
    verdict = Verdict("reference.py", "port.py", (*GOOD, fine, NORM), ((EPSILON,),), places=PLACES)
    assert report(verdict, COMMAND) == golden(
        """
        stage      case                   compared        values  largest ratio  reference's
        load       as given               state (2)          136          equal        equal  pass
        outputs    shaken, training mode  outputs/logits     640           0.31         0.06  pass
        loss       shaken                 loss                 1          0.002            -  pass
        gradients  shaken                 gradients (2)      192            251         0.10  FAIL

        error[F012]: gradients differ: norm1.weight, in 3 of 64 values
          --> gradients/norm1.weight[3], case 'shaken', norm1: LayerNorm (model.py:31)
           |
           | expected  0.0123456 ± 2.1e-07
           | actual    0.0124
           | ratio     251, the reference's own 0.06
           |
           = within tolerance at this stage: fc.weight
           = fails in 'shaken'
           = agrees up to there: load, outputs, loss; largest ratio 0.31, the reference's own 0.06
           = cause: the port's norm has epsilon 1e-6, the reference's 1e-5, at norm1 (model.py:31)
           |   - nn.LayerNorm()
           |   + nn.LayerNorm(epsilon=1e-5)
           = with that mistake in the reference (F012 layer-norm-epsilon) all of this stage agrees, largest ratio 0.20
           = next: python -m parity reference.py port.py --only gradients
           = next: python -m parity explain F012

        differs at gradients: gradients/norm1.weight in 'shaken', ratio 251
        """
    )


def test_a_difference_that_is_not_explained_says_what_to_compare() -> None:
    small = Comparison("outputs", "float64, training mode", "outputs/logits", 640, 0.5, None)
    first = Comparison("outputs", "large inputs", "outputs/hidden", 6, 4.0, 0.1, (1, 2), -3.0, -3.00001, 2.5e-6, 6)
    second = Comparison("outputs", "large inputs", "outputs/logits", 640, 81.0, 0.2, (0, 0), 1.0, 2.0, 0.1, 9)
    assert said(*GOOD[:3], small, first, second) == golden(
        """
        error: outputs differ: hidden, in 6 of 6 values
          --> outputs/hidden[1, 2], case 'large inputs', encoder: Encoder (model.py:12)
           |
           | expected  -3 ± 2.5e-06
           | actual    -3.00001
           | ratio     4.00, the reference's own 0.10
           |
           = differs too: logits (81.00)
           = fails in 'large inputs'; passes in 'shaken, training mode', 'float64, training mode'
           = float64 agrees: products in TF32 or bfloat16 (precision="highest"), or a formula that loses digits
           = agrees up to there: load; equal in every bit
           = help: let outputs return intermediate values by the reference's names: the first that differs has the cause
           = next: python -m parity reference.py port.py --only outputs

        differs at outputs: outputs/hidden in 'large inputs', ratio 4.00
        """
    )


def test_equality_that_is_missed_and_a_value_that_is_not_finite() -> None:
    exact = Comparison("loss", "integers", "loss", 1, math.inf, 0.0, (), 3.0, math.nan, 0.0, 1)
    assert said(exact, command="") == golden(
        """
        error: the loss differs
          --> loss, case 'integers'
           |
           | expected  3 exactly: nothing rounds here
           | actual    nan, which is not finite
           | ratio     differs, the reference's own equal
           |
           = fails in 'integers'
           = help: compare the reduction, weights, ignored labels, smoothing, and what is added to the loss

        differs at loss: loss in 'integers', ratio differs
        """
    )


def test_a_port_that_gives_no_answer() -> None:
    wrong = "train_step: the port raised ValueError: no (port.py:12)\nthe last lines that the port printed:\n  | hello"
    assert said(*GOOD, Comparison("step", "shaken", "train_steps", 0, math.inf, None, wrong=wrong)) == golden(
        """
        error: train_step: the port raised ValueError: no (port.py:12)
          --> train_steps, case 'shaken'
           | the last lines that the port printed:
           |   | hello
           |
           = fails in 'shaken'
           = agrees up to there: load, outputs, loss; largest ratio 0.31, the reference's own 0.06
           = next: python -m parity reference.py port.py --only step

        differs at step: train_steps in 'shaken', cannot be compared
        """
    )


def test_names_that_do_not_match_come_with_the_mapping() -> None:
    wrong = 'load_state_dict: names are left over: 1 of the reference (fc.weight)\nnames = {\n    "fc.weight": "w",\n}'
    assert said(Comparison("load", "as given", "load", 0, math.inf, None, wrong=wrong)) == golden(
        """
        error: load_state_dict: names are left over: 1 of the reference (fc.weight)
          --> load, case 'as given'
           | names = {
           |     "fc.weight": "w",
           | }
           |
           = fails in 'as given'
           = next: python -m parity reference.py port.py --only load

        differs at load: load in 'as given', cannot be compared
        """
    )


def test_a_quantity_that_is_missing() -> None:
    wrong = "is missing; the port gives outputs/logits"
    assert said(Comparison("outputs", "shaken", "outputs/hidden", 9, math.inf, None, wrong=wrong)).startswith(
        "error: hidden is missing; the port gives outputs/logits\n  --> outputs/hidden, case 'shaken', encoder"
    )


def test_two_mistakes_and_two_that_explain_one_equally_well() -> None:
    other = Explanation("", "a factor", "", "every gradient is 2 times too large", ratio=0.4)
    text = said(*GOOD, NORM, explanations=((EPSILON, other), (other,)), command="")
    assert text.startswith("error[F012]: gradients differ")
    assert (
        golden(
            """
        = cause 1 of 2 that act together: the port's norm has epsilon 1e-6, the reference's 1e-5, at norm1 (model.py:31)
        """
        )
        in text
    )
    assert "   = or, equally good: every gradient is 2 times too large\n" in text
    assert "   = cause 2 of 2 that act together: every gradient is 2 times too large\n" in text
    assert "help" not in text


def test_a_cause_stands_with_its_stage_or_names_the_one_that_is_not_shown() -> None:
    step = Comparison("step", "shaken", "update/1/norm1.weight", 64, 3.0, 0.1, (3,), 1e-3, 2e-3, 1e-4, 1)
    of_step = Explanation("O001", "decay", "", "the port decays biases", ratio=0.4, stage="step")
    gradients, update = said(*GOOD, NORM, step, explanations=((EPSILON,), (of_step,))).split("error")[1:]
    assert gradients.startswith("[F012]: gradients differ")
    assert "   = cause: the port's norm has epsilon" in gradients
    assert update.startswith("[O001]: the first update differs")
    assert "   = cause: the port decays biases\n" in update
    alone = said(*GOOD, NORM, explanations=((EPSILON,), (of_step,)))
    assert "   = cause 2 of 2 that act together, of step: the port decays biases\n" in alone
    assert "(O001 decay) all of step agrees" in alone


def test_of_gradients_the_last_parameters_is_shown_for_they_are_computed_first() -> None:
    last = Comparison("gradients", "shaken", "gradients/head.weight", 64, 2.0, 0.06, (0,), 1.0, 1.1, 0.05, 1)
    other_case = Comparison("gradients", "zero", "gradients/z.weight", 64, 2.0, 0.06, (0,), 1.0, 1.1, 0.05, 1)
    text = said(*GOOD, NORM, last, other_case)
    assert text.startswith("error: gradients differ: head.weight")
    assert "   = differs too: norm1.weight (251), z.weight (2.00)\n" in text


def test_each_failing_stage_has_a_block_and_the_last_line_names_the_first() -> None:
    step = Comparison("step", "shaken", "update/1/norm1.weight", 64, 3.0, 0.1, (3,), 1e-3, 2e-3, 1e-4, 1)
    later = Comparison("steps", "shaken", "loss/2", 1, 7.0, 0.1, (), 1.0, 2.0, 1e-4, 1)
    text = said(*GOOD, NORM, step, later)
    assert [line for line in text.splitlines() if line.startswith("error")] == [
        "error: gradients differ: norm1.weight, in 3 of 64 values",
        "error: the first update differs: norm1.weight, in 1 of 64 values",
        "error: updates after the first differ: loss/2",
    ]
    assert text.splitlines()[-1] == "differs at gradients: gradients/norm1.weight in 'shaken', ratio 251"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_words_of_its_own(stage: str) -> None:
    text = said(Comparison(stage, "shaken", "x/y", 2, 2.0, 0.1, (0,), 1.0, 2.0, 0.5, 1))
    assert not text.startswith(f"error: {stage} differs")
    assert "= help: " in text
    assert "what the two programs do here" not in text


def test_most_cases_are_counted_and_the_exceptions_named() -> None:
    failing = [Comparison("loss", f"case {at}", "loss", 1, 2.0, 0.1) for at in range(20)]
    passing = Comparison("loss", "zero inputs", "loss", 1, 0.5, 0.1)
    assert "   = fails in 20 of 21 cases; passes in 'zero inputs'\n" in said(*failing, passing)
    assert "   = fails in all 20 cases\n" in said(*failing)


def test_nothing_compared_does_not_agree() -> None:
    assert report(Verdict("r", "p", ())) == "nothing was compared"
    assert not Verdict("r", "p", ()).agrees


def test_control_characters_and_newlines_of_a_port_cannot_fake_a_line() -> None:
    evil = "state/\x1b[2Jw\nagrees: 9 comparisons in 9 stages, 9 values"
    text = report(Verdict("r", "p", (Comparison("load", "a\nagrees: b", evil, 1, 2.0, 0.1, wrong="no\nagrees: c"),)))
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("agrees")]


def test_json_has_all_of_it_and_is_json() -> None:
    bad = Comparison("loss", "integers", "loss", 1, math.inf, None, (), 3.0, math.nan)
    verdict = Verdict("r", "p", (*GOOD, bad), ((EPSILON,),), ("init: none",), ("a note",), PLACES)
    found = json.loads(as_json(verdict), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["agrees"] is False
    assert found["verdict"] == sentence(verdict)
    assert found["comparisons"][-1]["ratio"] == "inf"
    assert found["comparisons"][-1]["actual"] == "nan"
    assert found["comparisons"][2]["reference_ratio"] == 0.062
    assert found["explanations"][0][0]["code"] == "F012"
    assert (found["not_judged"], found["notes"], found["places"]) == (["init: none"], ["a note"], PLACES)


def test_markdown_is_a_page_of_it() -> None:
    page = as_markdown(Verdict("reference.py", "port.py", (GOOD[0], NORM), (), ("init: none",)), COMMAND)
    assert (
        page
        == golden(
            """
        # port.py beside reference.py

        **differs at gradients: gradients/norm1.weight in 'shaken', ratio 251**

        ```text
        error: gradients differ: norm1.weight, in 3 of 64 values
          --> gradients/norm1.weight[3], case 'shaken'
           |
           | expected  0.0123456 ± 2.1e-07
           | actual    0.0124
           | ratio     251, the reference's own 0.06
           |
           = fails in 'shaken'
           = agrees up to there: load; equal in every bit
           = help: compare what is detached, masked or stopped on the way back, and ties of ReLU, max and clip
           = next: python -m parity reference.py port.py --only gradients
        ```

        | stage | case | compared | values | largest ratio | reference's | verdict |
        |---|---|---|---:|---:|---:|---|
        | load | as given | state/fc.weight | 128 | equal | equal | pass |
        | gradients | shaken | gradients/norm1.weight | 64 | 251 | 0.06 | FAIL |

        A ratio is |actual − expected| / tolerance; 1 passes. The reference's is that of its own float32 run.

        - not judged: init: none
        """
        )
        + "\n"
    )


def test_a_stage_that_differs_only_by_what_was_named_takes_one_line() -> None:
    later = Comparison("step", "shaken", "update/1/fc.weight", 128, 9e9, 0.1, explained=True)
    text = said(NORM, later, explanations=((EPSILON,),))
    assert text.count("error") == 1
    assert "   = step: what differs there comes of what was named\n" in text
    unexplained = Comparison("step", "shaken", "update/1/fc.weight", 128, 9e9, 0.1)
    assert "error: the first update differs" in said(NORM, unexplained, explanations=((EPSILON,),))
