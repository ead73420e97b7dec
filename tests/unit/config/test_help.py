"""Every setting is described, and --help shows it."""

from collections.abc import Iterator

from pydantic import BaseModel

from dgpt.config import FinetuneConfig, RunConfig, SourceConfig, load_config, settings_help


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Dotted path and description of every setting below `model`."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description


def test_every_setting_has_a_description_that_ends_with_a_full_stop() -> None:
    for path, description in [*settings(RunConfig), *settings(SourceConfig), *settings(FinetuneConfig)]:
        assert description, path
        assert description.endswith("."), path


def test_help_shows_every_setting_with_its_default_and_description() -> None:
    text = settings_help()
    for path, description in settings(RunConfig):
        assert f"  {path} = " in text, path
        assert f"      {description}" in text, path
    assert "optimizer.lr = 0.0006" in text
    assert 'parallel.reduce_dtype = "auto"' in text


def test_help_of_fine_tuning_shows_its_settings() -> None:
    text = settings_help(FinetuneConfig)
    for path, description in settings(FinetuneConfig):
        assert f"  {path} = " in text, path
        assert f"      {description}" in text, path
    assert "optimizer.lr = 5e-05" in text


def test_help_shows_the_settings_of_a_source() -> None:
    text = settings_help()
    for name, description in settings(SourceConfig):
        assert f"  {name} = " in text, name
        assert f"      {description}" in text, name


def test_the_defaults_that_help_shows_are_valid_overrides() -> None:
    lines = [
        line.strip() for line in settings_help().splitlines() if line.startswith("  ") and "." in line.split(" = ")[0]
    ]
    overrides = [line for line in lines if " = " in line and not line.startswith("data.sources")]
    assert len(overrides) > 70
    assert load_config(None, overrides) == RunConfig()
