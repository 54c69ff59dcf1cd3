"""Text to token ids, with the tokenizer of the model itself.

Control tokens are put in by id and by nothing else: text that spells one is text, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptoss_convert.assets import TOKENIZER_JSON, is_utf8
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.vocabulary import PRE_TOKENIZERS
from gptoss_convert.formats.tokenizer_files import tokenizer_files
from gptoss_convert.tokenizer import TokenizerSource, TokenKind, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Control:
    """A control token, such as `<|start|>`, in the middle of text."""

    token: str


Piece = str | Control
"""Text is encoded piece by piece: no token reaches over the end of one."""


class TextEncoder:
    """Encodes text for one model."""

    def __init__(self, source: TokenizerSource, vocab_size: int) -> None:
        """Build the encoder; `vocab_size` is the number of rows of the model's embedding.

        The library `tokenizers` is given the `tokenizer.json` that the vocabulary means, so that a GGUF file and a
        folder with the same vocabulary encode alike.

        Raises:
            InputError: the tokenizer is damaged.
            UnsupportedError: it is no tokenizer as gpt-oss has, or the library is not installed.
        """
        self.vocabulary: Vocabulary = source.vocabulary()
        self._path = source.path
        self._vocab_size = vocab_size
        self._tokenizer = self._build()
        controls = {
            token: index
            for index, (token, kind) in enumerate(zip(self.vocabulary.tokens, self.vocabulary.kinds, strict=True))
            if kind is TokenKind.CONTROL and token is not None and index < vocab_size
        }
        self.controls: Mapping[str, int] = controls
        """Ids of the control tokens that the model has."""

    def _build(self) -> Tokenizer:
        try:
            from tokenizers import Tokenizer
            from tokenizers.pre_tokenizers import ByteLevel
        except ModuleNotFoundError:
            raise UnsupportedError(
                "encoding prompts needs the package `tokenizers`",
                hint="install it with `pip install 'gptoss-convert[verify]'`, or give prompts as token ids",
            ) from None
        if self.vocabulary.pattern not in PRE_TOKENIZERS:  # a stranger's could take for ever, or panic
            raise UnsupportedError(
                "tokenizer splits text otherwise than that of gpt-oss",
                file=self._path,
                found=self.vocabulary.pattern,
                hint="give prompts as token ids",
            )
        if lacking := set(ByteLevel.alphabet()).difference(filter(None, self.vocabulary.tokens)):
            raise InputError(  # the library would drop them from the text without a word
                "tokenizer lacks tokens of single bytes",
                file=self._path,
                found=f"{256 - len(lacking)} of them",
                expected=256,
            )
        content = tokenizer_files(self.vocabulary)[TOKENIZER_JSON]
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more special
            raise InputError(f"damaged tokenizer: {error}", file=self._path) from None
        tokenizer.encode_special_tokens = True  # as text
        return tokenizer

    def encode(self, pieces: Iterable[Piece]) -> tuple[int, ...]:
        """Return the token ids of `pieces`, all below the number of rows of the embedding.

        Raises:
            InputError: text is no sound Unicode, the tokenizer cannot encode it, or the model has not as many
                tokens as its tokenizer.
            KeyError: the model lacks a control token.
        """
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, Control):
                ids.append(self.controls[piece.token])
            else:
                ids += self._encode_text(piece)
        return tuple(ids)

    def _encode_text(self, text: str) -> list[int]:
        if not is_utf8(text):
            raise InputError("text has half a surrogate pair, which is no character")
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # as above
            raise InputError(f"tokenizer cannot encode the text: {error}") from None
        if ids and max(ids) >= self._vocab_size:
            raise InputError(
                "tokenizer does not belong to the model",
                file=self._path,
                found=f"token id {max(ids)}",
                expected=f"ids below {self._vocab_size}",
            )
        return ids
