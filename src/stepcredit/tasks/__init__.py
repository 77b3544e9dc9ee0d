"""Tasks: problems with an exact grader, loaders of published problem sets, and the cutting of text into steps."""

from stepcredit.tasks.arithmetic import Arithmetic, Problem
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.labeled_files import LabeledData, read_labeled_steps
from stepcredit.tasks.labeled_steps import LabeledSteps, labeled_rows, split_groups
from stepcredit.tasks.math_answers import AnswerGrader, FinalAnswer, final_answer
from stepcredit.tasks.math_problems import MathProblem, gsm8k_solutions, load_problems
from stepcredit.tasks.mathematics import Mathematics
from stepcredit.tasks.multihop import MultiHop, MultiHopSearch
from stepcredit.tasks.segmentation import SCHEMES, Scheme, segment
from stepcredit.tasks.task import Example, SearchTask, Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Arithmetic, Mathematics, MultiHop, MultiHopSearch)}

__all__ = [
    "SCHEMES",
    "TASKS",
    "AnswerGrader",
    "Arithmetic",
    "Example",
    "FinalAnswer",
    "Grade",
    "LabeledData",
    "LabeledSteps",
    "MathProblem",
    "Mathematics",
    "MultiHop",
    "MultiHopSearch",
    "Problem",
    "Scheme",
    "SearchTask",
    "Task",
    "final_answer",
    "gsm8k_solutions",
    "labeled_rows",
    "load_problems",
    "read_labeled_steps",
    "segment",
    "split_groups",
]
