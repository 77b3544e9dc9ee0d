"""The published ways to score steps, one text at a time and with the libraries' own calls: what `PRM` must agree with.

Each function takes the folder of a checkpoint, a problem and its steps, and gives the scores. None of them imports the
package.
"""

import json
from pathlib import Path

import torch
import transformers


def words_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def logits_of(kind, folder, ids):
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def softmax(numbers):
    powers = [2.718281828459045**number for number in numbers]
    return [power / sum(powers) for power in powers]


def sigmoid(number):
    return 1 / (1 + 2.718281828459045**-number)


def chat(folder, kind, problem, steps):
    """Qwen2.5-Math-PRM's card, and ReasonFlux-PRM without a system message: two labels at each separator."""
    words = words_of(folder)
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    messages = [{"role": "system", "content": system}] if kind == "qwen2.5-math-prm" else []
    messages += [
        {"role": "user", "content": problem},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    ids = words.encode(words.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    (separator,) = words.encode("<extra_0>")
    logits = logits_of("AutoModelForTokenClassification", folder, ids)
    return [softmax(logits[i].tolist())[1] for i, token in enumerate(ids) if token == separator]


def math_shepherd(folder, problem, steps):
    words = words_of(folder)
    good, bad = words.encode("+ -")[1:]
    (tag,) = words.encode("ки")[1:]
    ids = words.encode(problem + " " + "\n".join(f"Step {i + 1}: {step} ки" for i, step in enumerate(steps)))
    logits = logits_of("AutoModelForCausalLM", folder, ids)
    tagged = [i for i, token in enumerate(ids) if token == tag][-len(steps) :]  # a problem may hold the tag
    return [softmax([logits[i, good].item(), logits[i, bad].item()])[0] for i in tagged]


def skywork(folder, problem, steps):
    words = words_of(folder)
    ids, ends = words.encode(words.bos_token + problem + "\n"), []
    for step in steps:
        ids += [*words.encode(step), words.encode("\n")[-1]]
        ends.append(len(ids) - 1)
    from safetensors.torch import load_file

    weights = load_file(Path(folder) / "model.safetensors")
    configuration = json.loads((Path(folder) / "config.json").read_text())
    body = transformers.Qwen2Model(transformers.Qwen2Config(**configuration)).eval()
    body.load_state_dict({name[6:]: w for name, w in weights.items() if name.startswith("model.")})
    with torch.no_grad():
        hidden = body(input_ids=torch.tensor([ids])).last_hidden_state[0]
    weight, bias = weights["v_head.summary.weight"][0], weights["v_head.summary.bias"][0]
    return [
        sigmoid(sum(x * w for x, w in zip(hidden[i].tolist(), weight.tolist(), strict=True)) + bias.item())
        for i in ends
    ]


def rlhflow(folder, problem, steps):
    """One forward pass a step, read three tokens before the end."""
    words = words_of(folder)
    good, bad = (words.encode(label)[-1] for label in "+-")
    messages, scores = [], []
    for k, step in enumerate(steps):
        text = step if k else problem + " " + step
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
        ids = words.encode(words.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        row = logits_of("AutoModelForCausalLM", folder, ids)[-3]
        scores.append(softmax([row[good].item(), row[bad].item()])[0])
    return scores


def classified(folder, problem, steps, separator, bos):
    """The ids of pieces, and the logits of a token classifier at the last id of each separator."""
    words = words_of(folder)
    ids, ends = list(bos) + words.encode(problem, add_special_tokens=False), []
    for step in steps:
        ids += words.encode(step, add_special_tokens=False) + words.encode(separator, add_special_tokens=False)
        ends.append(len(ids) - 1)
    logits = logits_of("AutoModelForTokenClassification", folder, ids)
    return [softmax(logits[i].tolist()) for i in ends]


def pure(folder, problem, steps):
    return [right - wrong for wrong, right in classified(folder, problem, steps, "\n", [])]


def trl(folder, problem, steps, separator="\n"):
    bos = words_of(folder).bos_token_id
    rows = classified(folder, problem, steps, separator, [] if bos is None else [bos])
    return [right for _, right in rows]


def versaprm(folder, problem, steps):
    words = words_of(folder)
    tag = words.encode(" \n\n\n\n")[-1]
    ids = words.encode(problem + " \n\n" + "".join(step + " \n\n\n\n" for step in steps))
    logits = logits_of("AutoModelForCausalLM", folder, ids)
    wrong, right = words.encode("-")[-1], words.encode("+")[-1]
    return [
        softmax([logits[i, wrong].item(), logits[i, right].item()])[1] for i, token in enumerate(ids) if token == tag
    ]


def eurus(folder, reference, problem, steps, beta=0.001):
    """The card's sums: ends from the lengths of partial conversations, token t's log-ratio at index t - 1."""
    words = words_of(folder)

    def conversation(some):
        answer = "\n\n".join(some)
        messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": answer}]
        return words.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)

    steps = [f"Step {k + 1}: {step}" for k, step in enumerate(steps)]
    ids = words.encode(conversation(steps), add_special_tokens=False)
    ends = []
    for k in range(len(steps) + 1):
        text = conversation(steps[:k]).strip() + ("\n\n" if 0 < k < len(steps) else "")
        ends.append(len(words.encode(text, add_special_tokens=False)) - 2)
    mine, other = (logits_of("AutoModelForCausalLM", at, ids).double().log_softmax(-1) for at in (folder, reference))
    ratios = [beta * (mine[t, ids[t + 1]] - other[t, ids[t + 1]]).item() for t in range(len(ids) - 1)]
    ratios = [ratio if t + 1 >= ends[0] else 0.0 for t, ratio in enumerate(ratios)]
    return [sum(ratios[: end + 1]) for end in ends[1:]]


def universal(folder, problem, steps, answer=None):
    words = words_of(folder)
    given = "There is no reference answer for this question." if answer is None else answer
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": f"{problem}\n\n###\n\nThe reference answer is: {given}"},
    ]
    prompt = words.encode(words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    scores = []
    for k in range(1, len(steps) + 1):
        ids = prompt + words.encode("\n\n".join(steps[:k]) + "\n\n") + [words.eos_token_id]
        scores.append(sigmoid(logits_of("AutoModelForSequenceClassification", folder, ids).item()))
    return scores
