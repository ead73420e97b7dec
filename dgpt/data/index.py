"""What index.json of a prepared folder must say, so that whoever reads it meets no surprise later."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, le=2**53)]
FileName = Annotated[str, Field(pattern=r"^([\w-]+/)?[\w-]+\.\w+$")]  # cannot leave the folder


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Shard(_Strict):
    tokens: Count
    documents: Count
    file: FileName
    documents_file: FileName


class _Split(_Strict):
    tokens: Count
    documents: Count
    shards: list[_Shard]


class _Source(_Strict):
    name: str
    text_bytes: Count
    splits: dict[Literal["train", "val"], _Split]


class _File(_Strict):
    bytes: Count
    sha256: str


class _Tokenizer(_Strict):
    hash: str
    vocab_size: Count
    eod_id: Count


class _Index(_Strict):
    dtype: Literal["uint16", "uint32"]
    shard_tokens: Annotated[int, Field(ge=1)]
    tokenizer: _Tokenizer
    sources: list[_Source]
    files: dict[FileName, _File]
    preparation: dict[str, Any]


def check_index(index: dict[str, Any]) -> None:
    """Raises ValueError that names the first entry which is missing or of another kind."""
    try:
        _Index.model_validate(index)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
