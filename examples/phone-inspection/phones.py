"""Draws phones as the camera above the line sees them, some with scratches; what is true of each is known.

One seed and one light give one set of pictures, whatever was drawn before. A picture is float32, 0 (black) to 1 (white).

    python examples/phone-inspection/phones.py SHEET.png       a contact sheet: normal light above dim, fine above scratched
"""

from __future__ import annotations

import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SIDE = 64
NORMAL, DIM = 1.0, 0.0
DIM_EXPOSURE = 0.11  # of the light that there normally is
STRAY_LIGHT = 0.1  # of the hall, which the lens scatters over a dim picture
READ_NOISE, SHOT_NOISE = 0.005, 0.0002  # a deviation, and a variance for each unit of light
BODY_WIDTH, BODY_HEIGHT, CORNER = 20.0, 28.0, 5.0  # half sizes and radius in pixels
DUST_AT_MOST, SMUDGES_AT_MOST, SCRATCHES_AT_MOST = 7, 3, 3

Floats = npt.NDArray[np.float32]
Field = npt.NDArray[np.floating]
"""Something of every pixel of every phone, [phones, 64, 64], or that broadcasts to it."""


@dataclass(frozen=True, slots=True)
class Phones:
    """`pictures` are float32 [phones, 1, 64, 64] from 0 to 1; all else is [phones] and known only to whoever drew them.

    `visibility` says how plain the plainest scratch is (contrast times the root of its length; 0 without one), `dust` is
    the contrast of the speck that looks most like a scratch, `light` runs from DIM to NORMAL.
    """

    pictures: Floats
    scratched: npt.NDArray[np.bool_]
    visibility: Floats
    dust: Floats
    light: Floats

    def __len__(self) -> int:
        return len(self.scratched)


def draw(
    seed: int | tuple[int, ...], count: int, light: float | Field = NORMAL, scratched: float = 0.5
) -> Phones:
    """`count` phones under a light from 0 (dim) to 1 (normal), one for all or one for each; `scratched` is a share.

    Dimming takes the light of all lamps but one: darker, less contrast, more noise, and falling off from one corner.
    """
    rng = np.random.default_rng(seed)
    lit = np.broadcast_to(np.asarray(light, dtype=np.float64), (count,))
    is_scratched = rng.random(count) < scratched
    x, y = _around_the_phone(rng, count)
    inside = _edge(-_rounded_box(x, y, BODY_WIDTH, BODY_HEIGHT, CORNER))
    camera, bump = _camera(rng, x, y)
    surface = _body(rng, x, y, inside)
    surface = surface * (1 - bump) + camera * bump
    free = inside * (1 - bump)  # where dust and scratches can be seen
    dust, plainest_dust = _dust(rng, x, y)
    scratches, visibility = _scratches(rng, x, y, is_scratched)
    surface = surface + free * (_smudges(rng, x, y) + _reflection(rng, x, y) + scratches) + inside * dust
    return Phones(
        pictures=_photograph(rng, surface, lit)[:, None],
        scratched=is_scratched,
        visibility=visibility.astype(np.float32),
        dust=plainest_dust.astype(np.float32),
        light=lit.astype(np.float32),
    )


def contact_sheet(rows: list[Phones], scale: int = 1, gap: int = 2) -> npt.NDArray[np.uint8]:
    """One row of pictures for each set, as uint8 [height, width]."""
    lines = []
    for phones in rows:
        cells = [np.pad(picture[0], gap, constant_values=1.0) for picture in phones.pictures]
        lines.append(np.concatenate(cells, axis=1))
    sheet = np.concatenate(lines).repeat(scale, 0).repeat(scale, 1)
    return np.round(sheet * 255).astype(np.uint8)


def write_png(path: Path, gray: npt.NDArray[np.uint8]) -> None:
    """An 8-bit grayscale PNG (RFC 2083) of uint8 [height, width]."""
    height, width = gray.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    lines = np.pad(gray, ((0, 0), (1, 0)))  # each line begins with its filter: 0, none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _around_the_phone(rng: np.random.Generator, count: int) -> tuple[Field, Field]:
    """Coordinates of every pixel in the frame of its phone, which lies a little crooked and off the middle."""
    turn = _each(rng.normal(0, 0.04, count))
    offset_x, offset_y = (_each(rng.uniform(-2.0, 2.0, count)) for _ in range(2))
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    x, y = columns[None] - offset_x, rows[None] - offset_y
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def _body(rng: np.random.Generator, x: Field, y: Field, inside: Field) -> Field:
    """The table, the shadow on it, the back of the phone and its rim, which catches the light on one side."""
    count = len(x)
    table = _each(rng.uniform(0.68, 0.85, count))
    back = _each(rng.uniform(0.28, 0.5, count)) - _each(rng.uniform(-0.04, 0.06, count)) * y / BODY_HEIGHT
    shadow = 0.3 * _edge(-_rounded_box(x - 1.5, y - 1.5, BODY_WIDTH + 0.5, BODY_HEIGHT + 0.5, CORNER), 3.0)
    depth = _rounded_box(x, y, BODY_WIDTH, BODY_HEIGHT, CORNER)
    rim: Field = np.exp(-(((depth + 1.2) / 0.7) ** 2)) * (0.12 - 0.14 * (x / BODY_WIDTH + y / BODY_HEIGHT))
    look: Field = (table - shadow) * (1 - inside) + (back + rim) * inside
    return look


def _camera(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field]:
    """(what the camera bump looks like, where it is): a raised square with two or three lenses and their glints."""
    count = len(x)
    left, top = -BODY_WIDTH + 8.5, -BODY_HEIGHT + 9.0
    bump = _edge(-_rounded_box(x - left, y - top, 5.8, 6.5, 2.5))
    look = _each(rng.uniform(0.2, 0.4, count)) - 0.012 * (x - left + y - top)
    third = _each(rng.random(count) < 0.6)
    for lens_x, lens_y, there in ((-2.4, -2.8, 1.0), (-2.4, 2.8, 1.0), (2.6, 0.0, third)):
        away = np.hypot(x - left - lens_x, y - top - lens_y)
        ring = 0.25 * np.exp(-(((away - 2.3) / 0.5) ** 2))
        glint = 0.55 * np.exp(-(np.hypot(x - left - lens_x + 0.7, y - top - lens_y + 0.7) ** 2) / 0.4)
        look = look + there * (ring + glint - look * 0.85 * _edge(2.0 - away))
    return look, bump


def _smudges(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """Fingerprints: broad, soft and faint, lighter or darker than the back."""
    count, smudges = len(x), np.zeros_like(x)
    for number in range(SMUDGES_AT_MOST):
        u, v = _somewhere(rng, x, y)
        wide, narrow = (_each(rng.uniform(low, high, count)) for low, high in ((4, 9), (2.5, 5)))
        contrast = _each(rng.uniform(-0.06, 0.09, count) * (rng.random(count) < 0.6 - 0.15 * number))
        ridges = 1 + 0.25 * np.sin(u * 1.3)
        smudges = smudges + contrast * ridges * np.exp(-((u / wide) ** 2) - (v / narrow) ** 2)
    return smudges


def _reflection(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """The lamp mirrored in the back: a soft band across it."""
    count = len(x)
    angle = _each(rng.uniform(0.4, 1.2, count))
    across = x * np.cos(angle) + y * np.sin(angle) - _each(rng.uniform(-18, 18, count))
    strength = _each(rng.uniform(0.0, 0.16, count))
    band: Field = strength * np.exp(-((across / _each(rng.uniform(4, 9, count))) ** 2))
    return band


def _dust(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field]:
    """(specks and lint, contrast of the plainest piece of lint): lint is as thin as a scratch, and short."""
    count, dust, plainest = len(x), np.zeros_like(x), np.zeros(len(x))
    for number in range(DUST_AT_MOST):
        there = rng.random(count) < (0.75 if number < 3 else 0.35)
        is_lint = rng.random(count) < 0.22
        contrast = rng.uniform(0.08, 0.4, count) * there
        u, v = _somewhere(rng, x, y)
        length = _each(np.where(is_lint, rng.uniform(1.2, 2.2, count), rng.uniform(0.5, 1.0, count)))
        width = _each(np.where(is_lint, 0.65, rng.uniform(0.5, 0.9, count)))
        dust = dust + _each(contrast) * np.exp(-((u / length) ** 2) - (v / width) ** 2)
        plainest = np.maximum(plainest, contrast * is_lint)
    return dust, plainest


def _scratches(
    rng: np.random.Generator, x: Field, y: Field, scratched: npt.NDArray[np.bool_]
) -> tuple[Field, Field]:
    """(the scratches, how visible the plainest is): thin, longer than lint, a little bent, mostly light with a dark lip."""
    count, scratches, visibility = len(x), np.zeros_like(x), np.zeros(len(x))
    for number in range(SCRATCHES_AT_MOST):
        there = scratched & (rng.random(count) < (1.0, 0.3, 0.15)[number])
        half = rng.uniform(4.0, 13.0, count)
        contrast = np.exp(rng.uniform(np.log(0.11), np.log(0.45), count)) * there
        sign = np.where(rng.random(count) < 0.75, 1.0, -0.7)
        u, v = _somewhere(rng, x, y)
        bent = v - _each(rng.normal(0, 0.012, count)) * u**2
        along = _edge(_each(half) - np.abs(u), 1.5) * (
            1 + 0.25 * np.sin(u * _each(rng.uniform(0.3, 0.9, count)))
        )
        width = _each(rng.uniform(0.55, 0.9, count))
        groove = np.exp(-((bent / width) ** 2)) - 0.3 * np.exp(-(((bent - 1.5) / width) ** 2))
        scratches = scratches + _each(contrast * sign) * along * groove
        visibility = np.maximum(visibility, contrast * np.abs(sign) * np.sqrt(half / 8.0))
    return scratches, visibility


def _photograph(rng: np.random.Generator, surface: Field, light: Field) -> Floats:
    """What the sensor makes of it: fall-off from a corner, exposure, shot and read noise, 8 bits.

    Noise falls slower than light does, so a dim picture has less contrast and, measured against it, more noise.
    """
    count = len(surface)
    gone = _each(1 - light)
    rows, columns = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    angle = _each(rng.uniform(0, 2 * np.pi, count))
    slope = (columns * np.cos(angle) + rows * np.sin(angle)) * (0.25 + 0.65 * gone)
    exposure = (1 - (1 - DIM_EXPOSURE) * gone) * _each(rng.uniform(0.93, 1.07, count)) * (1 + slope)
    seen = np.clip(surface, 0, None) * exposure + STRAY_LIGHT * gone
    noise = np.sqrt(READ_NOISE**2 + SHOT_NOISE * seen)
    noisy = seen + noise * rng.standard_normal(seen.shape)
    picture: Floats = (np.round(np.clip(noisy, 0, 1) * 255) / 255).astype(np.float32)
    return picture


def _somewhere(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field]:
    """Coordinates along and across something that lies anywhere on the back, at any angle, but not on the camera."""
    count = len(x)
    at_x, at_y = rng.uniform(-0.78, 0.78, count) * BODY_WIDTH, rng.uniform(-0.82, 0.82, count) * BODY_HEIGHT
    on_camera = (at_x < -BODY_WIDTH + 17) & (at_y < -BODY_HEIGHT + 19)
    from_x, from_y = x - _each(np.where(on_camera, -at_x, at_x)), y - _each(at_y)
    angle = _each(rng.uniform(0, np.pi, count))
    along = from_x * np.cos(angle) + from_y * np.sin(angle)
    return along, from_y * np.cos(angle) - from_x * np.sin(angle)


def _rounded_box(x: Field, y: Field, width: float, height: float, corner: float) -> Field:
    """Signed distance to a box with round corners, negative inside; half sizes in pixels."""
    beyond_x, beyond_y = np.abs(x) - (width - corner), np.abs(y) - (height - corner)
    outside: Field = np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_y, 0))
    distance: Field = outside + np.minimum(np.maximum(beyond_x, beyond_y), 0) - corner
    return distance


def _edge(distance: Field, softness: float = 1.0) -> Field:
    """0 outside to 1 inside, with an edge so many pixels wide."""
    covered: Field = np.clip(distance / softness + 0.5, 0, 1)
    return covered


def _each(values: npt.NDArray[np.floating] | npt.NDArray[np.bool_]) -> Field:
    """One value of each phone, as a field."""
    return np.asarray(values, dtype=np.float64)[:, None, None]


def main(path: Path) -> None:
    """Writes the contact sheet of the README."""
    rows = [
        draw(seed, 10, light, scratched)
        for light in (NORMAL, DIM)
        for seed, scratched in ((1, 0.0), (2, 1.0))
    ]
    write_png(path, contact_sheet(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "phones.png")
