"""Tasks: problems with an exact grader, loaders of published problem sets, and the cutting of text into steps."""

from stepcredit.tasks.arithmetic import Arithmetic, Problem
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.math_answers import AnswerGrader, FinalAnswer, final_answer
from stepcredit.tasks.math_problems import MathProblem, gsm8k_solutions, load_problems
from stepcredit.tasks.segmentation import SCHEMES, Scheme, segment

__all__ = [
    "SCHEMES",
    "AnswerGrader",
    "Arithmetic",
    "FinalAnswer",
    "Grade",
    "MathProblem",
    "Problem",
    "Scheme",
    "final_answer",
    "gsm8k_solutions",
    "load_problems",
    "segment",
]
