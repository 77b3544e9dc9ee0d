"""The laws, in the order of the table, each with real bugs of its kind."""

from stepcredit.lab.conform import alignment, channels, form, grouping
from stepcredit.lab.conform.law import Law
from stepcredit.lab.conform.options import options

ADAPTER_LAWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "loss": (
        "the gradient at each token's log-probability is minus a multiple of its advantage",
        ("TRL 1.16 grpo_trainer.py: importance_sampling_level=sequence averages token credit in silence",
         "TRL 1.16 gmpo_trainer.py and rloo_trainer.py: advantages of [batch, time] run where the two are equal"),
    ),
    "refuses": ("what would average token credit over a sequence is refused by name", ()),
    "gradient": ("the trainer's gradient is that of minus the sum of credit times log-probability", ()),
    "faithful": ("what arrives at the loss is what the estimator gives to the same batch", ()),
    "joined": (
        "rows of one rollout are one rollout",
        ("verl 0.9.1 v1/utils.py: of a rollout of several rows a custom estimator sees each",
         "SkyRL #1492, PR #1507: an advantage masked by the last step's mask lands on other steps' tokens"),
    ),
}  # fmt: skip
"""What is said of adapters beside the laws, by the first word of a verdict's name: its sentence, and bugs."""

LAWS: tuple[Law, ...] = (
    Law("answers", "every valid batch gets credit, one of a single token too", form.answers,
        ("verl 0.9.1 utils/torch_functional.py: masked_whiten raises on a batch of one token",)),
    Law("form", "finite numbers without a gradient", form.finite_and_detached,
        ("slime #1449: whether advantages made of log-probabilities are detached",)),
    Law("zero", "exactly 0 on padding, tool output and rows that do not count", form.zero_off_mask,
        ("SkyRL #1492, PR #1507: an advantage masked by the last step's mask lands on other steps' tokens",)),
    Law("pure", "the same on every call, and the batch left as it was", form.pure),
    Law("padding", "more right padding changes nothing", form.padding,
        ("TRL #7024: padding in MiniLLM's advantage, and in the length it is divided by",)),
    Law("unread", "what stands off the mask, nan too, is never read", form.unread,
        ("TRL #7024: rewards of padding tokens in every earlier token's advantage",
         "slime #1370: the KL of tool output in REINFORCE++'s returns")),
    Law("observation", "tool output put between a response's tokens changes no credit of theirs", form.observation,
        ("TRL #6626: MiniLLM discounts by absolute position", "verl PR #2337: GAE ran over observation tokens",
         "miles PR #1827: each masked token cost one more step of discount")),
    Law("packed", "the packed layout gets the padded one's credit", form.packed_layout),
    Law("rows", "rollouts in another order get the same credit", grouping.rows_permuted,
        ("R1-V #67: rewards in another order than the reshape to groups supposed",)),
    Law("labels", "groups by any other name get the same credit", grouping.groups_relabeled),
    Law("alone", "a group alone in its batch gets the same credit: micro-batches, ranks of whole groups",
        grouping.groups_alone, ("tunix PR #820: micro-batches smaller than a group mixed prompts",)),
    Law("leak", "a group's rewards change no other group's credit", grouping.no_leak,
        ("grpo-flat #2: mean and std of the batch in the place of the group's",)),
    Law("shards", "groups split over ranks get one process's credit", grouping.sharded,
        ("slime ray/rollout.py: samples are balanced over ranks by length, so a rank holds parts of groups",)),
    Law("excluded", "rows that do not count, empty ones and padding rows change nothing", grouping.rows_excluded,
        ("verl PR #6310: an empty response's reward in its group's mean",
         "verl 0.9.1 padding_utils.py: batches are filled up with rows of a group of their own",
         "AReaL #1419: a partial group shifts every group after it")),
    Law("constant", "a constant added to a channel of reward changes nothing", channels.constant,
        ("verl 0.9.1 core_algos.py: GRPO, RLOO and GPG give a group of one its raw reward",)),
    Law("equal", "rollouts that do not differ get 0, not the rounding of a mean", channels.all_equal,
        ("verl 0.9.1 core_algos.py: std + 1e-6 divides the rounding of a float32 mean",)),
    Law("uncovered", "what stands where the signal does not cover is never read", channels.uncovered),
    Law("coverage", "no signal is not a signal of 0", channels.coverage,
        ("unsloth-zoo PR #832: a completion that no reward function scored enters its group as 0",)),
    Law("unscored", "a rollout without a signal gets nothing from the others' signals", channels.unscored),
    Law("shift", "rolling the signal by one token changes credit", alignment.shift,
        ("verl 0.9.1 core_algos.py: GRPO sums token rewards to one number a rollout (asked in #3683)",
         "SkyRL #201: rewards of turns are dropped")),
    Law("edges", "the first and the last token's signal both count", alignment.edges),
    Law("place", "a token's signal changes credit from there, or up to there", alignment.place,
        ("verl 0.9.1 trainer/distillation: teacher_logprobs stand one token to the left of the other columns",)),
    Law("options", "every option changes credit", options,
        ("TRL 1.16 grpo_trainer.py: normalize_then_sum ignores scale_rewards",)),
)  # fmt: skip
