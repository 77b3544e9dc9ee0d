import pytest

from stepcredit.config import build_estimator, dump_config, load_config, parse_config, recipes
from stepcredit.config.run import RunConfig, resolve
from stepcredit.errors import InputError

SMALL = {"policy": {"name": "tiny-arithmetic"}, "task": {"type": "arithmetic"}, "estimator": {"type": "grpo"}}


@pytest.mark.parametrize("name", recipes())
def test_recipes_read_back_as_they_were_written(name):
    config = load_config(name)
    assert parse_config(dump_config(config)) == config


def test_every_option_is_written_out():
    config = load_config("demo-pass")
    options = dict(config.estimator)
    assert build_estimator(options.pop("type"), options) == build_estimator("pass", {"k": 0.7})
    assert config.estimator["eta"] == 1e-8
    assert "eta = 1e-08" in dump_config(config)


def test_extends_merges_key_by_key_and_other_types_replace(tmp_path):
    (tmp_path / "base.toml").write_text(
        '[run]\nsteps = 7\nseed = 5\n[policy]\nname = "p"\n[task]\ntype = "arithmetic"\noperations = 3\n'
        '[estimator]\ntype = "pass"\nk = 0.5\n'
    )
    (tmp_path / "over.toml").write_text(
        'extends = "base.toml"\n[run]\nsteps = 9\n[estimator]\ntype = "spro"\nbeta = 0.5\n'
    )
    config = load_config(str(tmp_path / "over.toml"))
    assert (config.run.steps, config.run.seed, config.task["operations"]) == (9, 5, 3)
    assert config.estimator["beta"] == 0.5
    assert "k" not in config.estimator


def test_overrides_come_last():
    config = load_config("demo-pass", {"run.steps": 3, "estimator.k": 0.25, "policy.lora.r": 4})
    assert (config.run.steps, config.estimator["k"], config.lora) == (3, 0.25, {"r": 4})
    assert load_config("demo-pass", {"estimator.type": "grpo"}).estimator["type"] == "grpo"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"polcy": {}}, r"`polcy` must be a table.*did you mean policy"),
        ({"run": {"stepz": 3}}, r"`run.stepz` must be a key of \[run\].*did you mean steps"),
        ({"run": {"steps": 0}}, "`steps` must be"),
        ({"run": {"steps": "many"}}, "`steps` must be"),
        ({"run": 3}, "`run` must be a table"),
        ({"policy": {}}, "`policy` must be in the config"),
        ({"policy": {"name": ""}}, "`policy.name` must name a model"),
        ({"task": {"type": "arithmetik"}}, "did you mean arithmetic"),
        ({"task": {"operations": 3}}, "`task.type` must name a task"),
        ({"estimator": {"type": "pass", "kk": 1}}, "`kk` must be an option of pass"),
        ({"signal": {"type": "task_steps", "x": 1}}, "has no options"),
        ({"credit": {"gspo": True}}, "did you mean gspo_token"),
        ({"guard": {"ceiling": 0.5}}, "`guard` must come with a signal; got none"),
        (
            {"signal": {"type": "task_steps"}, "guard": {"ceil": 0.5}},
            r"`guard.ceil` must be a key of \[guard\].*ceiling",
        ),
        ({"signal": {"type": "task_steps"}, "guard": {"gate": "all"}}, "`gate` must be one of 'none', 'outcome'"),
        ({"reference": {"name": "x", "url": "http://127.0.0.1:1"}}, "`reference.url` must not be given"),
    ],
)
def test_what_is_wrong_is_named(tables, message):
    with pytest.raises(InputError, match=message):
        resolve({**SMALL, **tables})


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="did you mean demo-pass"):
        load_config("demo-pas")
    (tmp_path / "bad.toml").write_text("[run\n")
    with pytest.raises(InputError, match="must be TOML"):
        load_config(str(tmp_path / "bad.toml"))
    (tmp_path / "a.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(InputError, match="must not lead back"):
        load_config(str(tmp_path / "a.toml"))
    with pytest.raises(InputError, match="must name a key in a table"):
        load_config("demo-pass", {"steps": 3})


def test_a_config_is_compared_by_value():
    assert resolve(SMALL) == resolve(SMALL)
    assert isinstance(resolve(SMALL), RunConfig)


EIGHT = [
    (signal, scheme, norm)
    for signal in ("opd", "gopd")
    for scheme in ("grpo", "pass")
    for norm in ("masked_norm", "abs_max")
]


@pytest.mark.parametrize(("signal", "scheme", "norm"), EIGHT)
def test_the_eight_configurations_of_the_papers_table_come_tiny_and_whole(signal, scheme, norm):
    name = f"multihop-{signal}-{scheme}-{norm.replace('_', '-')}"
    tiny, whole = load_config(name), load_config(f"{name}-7b")
    for config in (tiny, whole):
        assert config.signal["type"] == signal
        assert config.signal.get("lam") == (1.25 if signal == "gopd" else None)
        assert config.estimator["norm"] == norm
        assert "steps" not in config.signal  # token by token
        if scheme == "pass":
            assert (config.estimator["type"], config.estimator["k"]) == ("pass", 0.7)
        else:
            assert (config.estimator["type"], config.estimator["fusion"]) == ("grpo_process", "pooled")
    assert (tiny.policy.name, tiny.models["teacher"].name) == ("tiny-multihop", "tiny-multihop-teacher")
    # PASS, arXiv 2606.29296: 128 prompts of 16 rollouts on 8 GPUs, 5,000 prompts twice, and so on.
    trainer, run = whole.trainer, whole.run
    rollouts = 8 * trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]
    assert (rollouts, trainer["num_generations"]) == (128 * 16, 16)
    assert (run.train_examples, run.steps) == (5000, 2 * 5000 // 128)
    assert (trainer["learning_rate"], trainer["warmup_steps"]) == (1e-6, 20)
    assert trainer["lr_scheduler_type"] == "constant_with_warmup"
    assert (trainer["epsilon"], trainer["beta"], trainer["vllm_max_model_length"]) == (0.2, 0.01, 6144)
    assert (whole.policy.name, whole.task["reward"]) == ("Qwen/Qwen2.5-7B-Instruct", "em")
    assert all(whole.estimator[weight] == 1.0 for weight in ("w_process", "w_outcome", "w_format"))
