"""The contents of messages: text, and parts of text and pictures, as OpenAI's API has them."""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import Image

PART_SEPARATOR = "\n"  # between texts of one message
_DATA_URL = re.compile(r"data:(image/(?:png|jpeg|webp));base64,([A-Za-z0-9+/=\s]*)\Z")


class ImageUrl(Struct, frozen=True):
    """Where a picture is."""

    url: str


class TextPart(Struct, frozen=True, tag="text"):
    """A piece of text."""

    text: str


class RefusalPart(Struct, frozen=True, tag="refusal"):
    """What an assistant said instead of an answer."""

    refusal: str


class ImagePart(Struct, frozen=True, tag="image_url"):
    """A picture."""

    image_url: ImageUrl


class AudioPart(Struct, frozen=True, tag="input_audio"):
    """Refused."""


class FilePart(Struct, frozen=True, tag="file"):
    """Refused."""


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | Sequence[Part] | None


def content_of(content: str | list[Part] | None, field: str) -> tuple[str, tuple[Image, ...]]:
    """Return a message's text and pictures. Pictures stand before the text.

    Raises:
        InvalidSyscall: a part that no core reads; `field` is its path.
    """
    if content is None:
        return "", ()
    if isinstance(content, str):
        return content, ()
    return joined(_read(part, f"{field}[{number}]") for number, part in enumerate(content))


def joined(pieces: Iterable[str | Image]) -> tuple[str, tuple[Image, ...]]:
    """Return the text and the pictures that the parts of a content are."""
    texts: list[str] = []
    images: list[Image] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
        else:
            images.append(piece)
    return PART_SEPARATOR.join(texts), tuple(images)


def _read(part: Part, field: str) -> str | Image:
    match part:
        case TextPart(text=text) | RefusalPart(refusal=text):
            return text
        case ImagePart(image_url=ImageUrl(url=url)):
            return image_of(url, f"{field}.image_url.url")
        case AudioPart() | FilePart():
            raise InvalidSyscall(
                f"a part of type {part.__struct_config__.tag!r} is not read",
                field=f"{field}.type",
                remedy="send text and pictures; keep files in storage",
            )


def image_of(url: str, field: str) -> Image:
    """Return the picture in a data URL.

    Raises:
        InvalidSyscall: it is none; the kernel fetches nothing from addresses that agents name.
    """
    found = _DATA_URL.match(url)
    if found is None:
        raise InvalidSyscall(
            "this is no picture that is read here",
            field=field,
            remedy="send a PNG, JPEG or WebP as a data URL in base64: the kernel fetches none",
        )
    return checked_image(found[1], found[2], field)


def checked_image(media_type: str, data: str, field: str) -> Image:
    """Return a picture of base64 text."""
    try:
        base64.b64decode(data, validate=True)
        return msgspec.convert({"media_type": media_type, "data": data}, Image)
    except (binascii.Error, msgspec.ValidationError) as error:
        raise InvalidSyscall(
            f"the picture cannot be read: {error}",
            field=field,
            remedy="send a PNG, JPEG or WebP in base64",
        ) from error
