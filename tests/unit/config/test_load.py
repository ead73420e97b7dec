"""Reading a run: precedence, literals, every mistake at once, and the way back to TOML."""

import tomllib
from pathlib import Path

import pytest

from dgpt.config import RunConfig, load_config, parse_config, to_toml
from dgpt.errors import UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 5\n[optimizer]\nlr = 1e-3\nweight_decay = 0.2\n")
    config = load_config(path, ["optimizer.lr=2e-3", "optimizer.lr=3e-3"])
    assert config.optimizer.lr == 3e-3  # the last word
    assert config.optimizer.weight_decay == 0.2
    assert config.optimizer.grad_clip == RunConfig().optimizer.grad_clip
    assert config.seed == 5
    assert load_config(None) == RunConfig()


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("optimizer.lr=3e-4", "optimizer", "lr", 3e-4),
        ("optimizer.lr=1", "optimizer", "lr", 1.0),
        ("optimizer.betas=[0.8, 0.9]", "optimizer", "betas", (0.8, 0.9)),
        ("model.bias=false", "model", "bias", False),
        ("model.n_layer = 1_0", "model", "n_layer", 10),
        ("logging.sample_prompt='def f(x):\\n'", "logging", "sample_prompt", "def f(x):\\n"),
        ('logging.sample_prompt="a\\nb"', "logging", "sample_prompt", "a\nb"),
        ("logging.sample_prompt=x = y", "logging", "sample_prompt", "x = y"),
        ("logging.sample_prompt=", "logging", "sample_prompt", ""),
        ("data.path=data/a b", "data", "path", "data/a b"),
        ("parallel.zero_extra={sub_group_size = 1e9}", "parallel", "zero_extra", {"sub_group_size": 1e9}),
    ],
)  # fmt: skip
def test_an_override_is_a_toml_literal_or_a_plain_string(override: str, section: str, name: str, value: object) -> None:
    assert getattr(getattr(load_config(None, [override]), section), name) == value


def test_an_override_at_the_top_level() -> None:
    assert load_config(None, ["run_dir=runs/mine", "seed=3"]).run_dir == "runs/mine"


@pytest.mark.parametrize("text", ["on", "yes", "no", "'true'", "1"])
def test_only_true_and_false_are_bool(text: str) -> None:
    with pytest.raises(UserError, match=r"model\.bias"):
        load_config(None, [f"model.bias={text}"])


@pytest.mark.parametrize("override", ["seed", "=3", "seed.deep=3", "optimizer.=3", "optimizer", ""])
def test_what_is_no_override_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="is not a setting"):
        load_config(None, ["seed=1", override])


def test_text_of_several_lines_is_one_string_and_not_several_settings() -> None:
    config = load_config(None, ["logging.sample_prompt='a'\nother = 'b'"])
    assert config.logging.sample_prompt == "'a'\nother = 'b'"


def test_all_mistakes_at_once_each_with_path_value_and_rule(tmp_path: Path) -> None:
    path = write(
        tmp_path, '[model]\nn_layer = 0\nn_head = "x"\n[optimizer]\nlearning_rate = 1.0\n[training]\nsteps = -1\n'
    )
    with pytest.raises(UserError) as caught:
        load_config(path, ["schedule.kind=cosin"])
    message = str(caught.value)
    assert f"{path}: 5 settings cannot be used" in message
    for part in (
        "model.n_layer = 0: input should be greater than or equal to 1",
        "model.n_head = 'x': input should be a valid integer",
        "optimizer.learning_rate = 1.0: no such setting",
        "training.steps = -1: input should be greater than or equal to 1",
        "schedule.kind = 'cosin': input should be 'cosine', 'wsd' or 'constant'",
        "\n  rule: ",
        "\n  fix:  ",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ('run_dir="a\\u0000b"', r"run_dir: 'a\x00b' holds a NUL character"),
        ('data.sources=[{path="a\\u0000b"}]', r"data.sources.0.path: 'a\x00b' holds a NUL character"),
        ('run_dir=""', "run_dir = '': string should have at least 1 character"),
        ('data.path=""', "data.path = '': string should have at least 1 character"),
        ("seed=99999999999999999999999", "seed = 99999999999999999999999: input should be less than or equal to"),
    ],
)
def test_values_that_no_path_or_generator_can_take(override: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert problem in str(caught.value)


def test_an_empty_name_is_no_file() -> None:
    with pytest.raises(UserError, match=r"config file '.' cannot be read"):
        load_config("")


def test_all_rules_between_sections_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, ["parallel.tp=5", "schedule.warmup_steps=9999", "training.micro_batch_size=7"])
    message = str(caught.value)
    assert "5 settings cannot be used" in message  # tp divides neither the heads nor the MLP
    for part in (
        "model.n_head = 12",
        "model.n_kv_head = 12",
        "(model.n_ff) = 3072",
        "take 9999 steps",
        "batch_size = 7",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("model.n_layers=3", "did you mean n_layer?"),
        ("optimiser.lr=1", "did you mean optimizer?"),
        ("training.micro_batchsize=1", "did you mean micro_batch_size?"),
        ("checkpoint.zzz=1", "known here: every_steps, keep_last, keep_every"),
        ('data.sources=[{bultin = "stdlib"}]', "did you mean builtin?"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(override: str, suggestion: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert suggestion in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.n_head=7"], r"model: n_embd = 768 must be a multiple of n_head = 7"),
        (["model.n_kv_head=5"], r"n_head = 12 must be a multiple of n_kv_head = 5"),
        (["model.shape='llama'", "model.n_embd=36"], r"n_embd / n_head = 3 must be even"),
        (["schedule.min_lr=1.0"], r"schedule\.min_lr = 1\.0 is above optimizer\.lr"),
        (["schedule.warmup_steps=2000"], r"take 2000 steps of training\.steps = 1000"),
        (["schedule.kind='wsd'", "schedule.decay_steps=950"], r"take 1050 steps of training\.steps = 1000"),
        (["parallel.tp=5"], r"parallel\.tp = 5 must divide model\.n_head = 12"),
        (["parallel.tp=4", "model.n_kv_head=2"], r"parallel\.tp = 4 must divide model\.n_kv_head = 2"),
        (["parallel.tp=4", "model.vocab_size=101", "model.vocab_multiple=1"], r"padded vocabulary .* = 101"),
        (["parallel.tp=4", "parallel.sequence_parallel=true", "model.seq_len=1022"], r"divide model\.seq_len = 1022"),
        (["training.micro_batch_size=7"], r"batch_size = 64 must be a multiple of training\.micro_batch_size = 7"),
        (["resume.stale_lock_seconds=600"], r"must be below parallel\.first_step_timeout_seconds = 600"),
        (["parallel.timeout_seconds=60"], r"hang_seconds = 90 must be below .* for example parallel\.hang_seconds=45"),
        (['data.sources=[{path = "a", dataset = "b"}]'], r"data\.sources\.0: a source needs exactly one of"),
        (["data.sources=[{}]"], r"a source needs exactly one of path, dataset, builtin"),
        (["tokenizer.kind='huggingface'"], r"tokenizer: path = '' goes with kind"),
        (["tokenizer.path=a.model"], r"tokenizer: path = 'a\.model' goes with kind"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"seed = = 3", "cannot be read: .*line 1"), (b"\xff\xfe", "cannot be read"), (None, "does not exist")],
)
def test_a_file_that_is_no_toml_is_a_users_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_config(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)  # a folder


FULL = """
run_dir = "runs/ä \\"quoted\\" \\t tab"
seed = 7

[model]
shape = "llama"
n_layer = 2
n_head = 4
n_embd = 32
tie_embeddings = true

[data]
sources = [{ path = "a/*.txt", weight = 0.25 }, { dataset = "x/y", split = "train[:1%]", weight = 0.75 }]

[tokenizer]
special_tokens = ["<a>", "<\\u007f>"]

[parallel]
zero_stage = 3
zero_extra = { round_robin_gradients = true, sub_group_size = 1e9, nested = { deep = [1, 2.0] } }

[optimizer]
eps = 1e-20
"""


def test_toml_round_trip(tmp_path: Path) -> None:
    for config in (RunConfig(), load_config(write(tmp_path, FULL))):
        text = to_toml(config)
        assert load_config(write(tmp_path, text)) == config
        assert to_toml(load_config(write(tmp_path, text))) == text


def test_the_resolved_config_names_every_setting() -> None:
    written = tomllib.loads(to_toml(RunConfig()))
    for section, field in RunConfig.model_fields.items():
        assert section in written
        if hasattr(field.annotation, "model_fields"):
            assert set(written[section]) == set(field.annotation.model_fields)


def test_a_json_dump_is_read_back() -> None:
    config = load_config(None, ["model.shape='llama'", "model.bias=true"])
    assert parse_config(config.model_dump(mode="json"), "manifest") == config


def test_a_shape_sets_defaults_that_the_file_may_change() -> None:
    llama = load_config(None, ["model.shape='llama'"]).model
    assert (llama.position, llama.norm, llama.mlp) == ("rope", "rmsnorm", "swiglu")
    assert not llama.bias
    assert not llama.tie_embeddings
    assert llama.ff_width == 2048
    assert load_config(None, ["model.shape='llama'", "model.tie_embeddings=true"]).model.tie_embeddings


def test_settings_are_frozen() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("override", ["model=3", "model.shape=[1]", "model.shape={a = 1}", "data.sources=3", "data=[]"])
def test_a_value_where_a_table_belongs_is_a_users_error(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        load_config(None, [override])


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_numbers_are_finite(value: str) -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr = .*: input should be"):
        load_config(None, [f"optimizer.lr={value}"])
