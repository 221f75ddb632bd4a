"""What the processor made, as what a method looks at.

A processor hands a model pixels and a prompt in which one placeholder stands for every visual
token. Here the pixels of a whole batch become `View`s, one per image or film: its tiles, and the
layout in which the language model gets them (`redlib.layouts`). `see` sends them through the stock
tower and projector once, as many at a time as fit into memory, and gives, per view, the rows of
that layout and the `Context`s in which a method chooses among them.

Packing, for the families that cut an image into tiles:

    stock   as Hugging Face packs it: the base tile, then the tiles as one picture, a newline a row
    split   tile after tile, nothing left out, one newline at the end: the paper's release
    base    the base tile and one newline

A choice is made per image, among all its tokens, or per tile. In the stock packing the tokens of a
tile are those of the picture that come from it; one that was pooled from several tiles belongs to
the tile it owes most. What a packing drops as padding is never there to be chosen. The tiles of a
film are its frames.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlib import layouts
from redlib.errors import RedlibError
from redlib.geometry import Grid
from redlib.layouts import Layout
from redlib.memory import in_parts
from redlib.prune.context import Context, Pooling, Trace, precise
from redlib.prune.pixels import films_of, tiles_of

PACKINGS = ("stock", "split", "base")
KINDS = ("image", "video")


@dataclass(frozen=True, eq=False)
class View:
    """An image or a film as the model gets it.

    Attributes:
        kind: "image" or "video".
        pixels: (n, 3, side, side), its tiles or frames.
        stock: how many placeholders the processor writes for it.
        layout: what stands where, nothing pruned.
        packed: whether the layout is the one the processor wrote placeholders for.
    """

    kind: str
    pixels: Tensor
    stock: int
    layout: Layout
    packed: bool = True

    @property
    def tiles(self) -> int:
        """n."""
        return len(self.pixels)

    @property
    def part(self) -> str:
        """What one of its tiles is called."""
        return "frame" if self.kind == "video" else "tile"


@dataclass(frozen=True, eq=False)
class Unit:
    """The visual tokens among which one choice is made.

    Attributes:
        numbers: (L,) their numbers among the visual tokens of the view, ascending.
        context: what a method sees of them.
        full: how many there are when nothing is cut off the unit.
        name: what messages call it, e.g. "tile 3 of image 0 (of 0 .. 1)".
    """

    numbers: np.ndarray
    context: Context
    full: int
    name: str


@dataclass(frozen=True, eq=False)
class Seen:
    """A view behind the tower and the projector.

    Attributes:
        view: the view.
        rows: (T, D) as its layout says.
        units: where choices are made.
        patches: (V,) for each visual token the patch that it owes most, numbered tile by tile.
    """

    view: View
    rows: Tensor
    units: tuple[Unit, ...]
    patches: np.ndarray


def read(model: nn.Module, given: Mapping[str, object], packing: str) -> list[View]:
    """The views of a batch, images first, each kind in the order of its placeholders.

    Args:
        model: a stock model of one of the three families.
        given: what the processor made.

    Raises:
        RedlibError: an input that the installer cannot treat as the stock model does.
    """
    config = model.config
    _refuse(given, config)
    cells = config.vision_config.image_size // config.vision_config.patch_size
    views = []
    if given.get("pixel_values") is not None:
        for pixels, size in tiles_of(given, config):
            stock, layout = _layouts(config, cells, len(pixels), size, packing)
            if packing == "base":
                pixels = pixels[:1]
            views.append(View("image", pixels, len(stock), layout, layout is stock))
    if given.get("pixel_values_videos") is not None:
        for frames in films_of(given, config):
            layout = layouts.film(cells, len(frames))
            views.append(View("video", frames, len(layout), layout))
    return views


def _refuse(given: Mapping[str, object], config: object) -> None:
    for name in ("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio"):
        value = given.get(name)
        if value is not None and value != getattr(config, name, None):
            raise RedlibError(
                f"{name}={value!r} is not what the model's config says; set it there and install "
                "the pruner again"
            )


def _layouts(
    config: object, cells: int, tiles: int, size: tuple[int, int] | None, packing: str
) -> tuple[Layout, Layout]:
    """The stock layout of an image, and the one that is asked for."""
    if config.model_type == "llava":
        stock = layouts.whole(cells)
        return stock, stock
    if size is None:
        stock = layouts.split(cells)
        return stock, stock
    most = getattr(config, "vision_aspect_ratio", None)
    stock = layouts.unpadded(
        cells,
        size,
        config.vision_config.image_size,
        config.image_grid_pinpoints,
        most=int(most.rsplit("_", 1)[1]) if most else None,
    )
    if packing == "stock":
        return stock, stock
    return stock, layouts.split(cells, tiles=tiles if packing == "split" else 1)


def see(
    model: nn.Module,
    views: Sequence[View],
    *,
    layers: Sequence[int],
    per: str | None,
    extra: Mapping[str, Sequence[Tensor]],
) -> list[Seen]:
    """Views through the stock tower and projector, once.

    Args:
        layers: tower layers to trace, counted from the end.
        per: "image" or "tile"; None where every view has one tile.
        extra: by name, one tensor per view over its visual tokens.

    Raises:
        RedlibError: a view of several tiles and no `per`, or of features that are not finite.
    """
    seen = []
    for kind in KINDS:
        group = [view for view in views if view.kind == kind]
        if group:
            features, traces = _tower(model, torch.cat([view.pixels for view in group]), layers)
            start = 0
            for number, view in enumerate(group):
                part = slice(start, start + view.tiles)
                start += view.tiles
                given = {name: values[len(seen)] for name, values in extra.items()}
                cut = {
                    layer: Trace(trace.queries[part], trace.keys[part], trace.scale)
                    for layer, trace in traces.items()
                }
                name = f"{kind} {number} (of 0 .. {len(group) - 1})"
                name = name if len(group) > 1 else f"the {kind}"
                seen.append(_see(model, view, features[part], cut, per, given, name))
    return seen


def _tower(
    model: nn.Module, pixels: Tensor, layers: Sequence[int], **options: bool
) -> tuple[Tensor, dict[int, Trace]]:
    """(n, P or 1 + P, C) features at the feature layer, and the traces of `layers`.

    All tiles at once, or as many as fit into memory.
    """
    tower = model.model.vision_tower
    weight = next(tower.parameters())

    def read(part: Tensor) -> tuple[Tensor, dict[tuple[int, str], Tensor]]:
        with _traced(tower, layers) as found:
            out = tower(
                part.to(weight.device, weight.dtype), output_hidden_states=True, return_dict=True,
                **options,
            )  # fmt: skip
        return out.hidden_states[model.config.vision_feature_layer], found

    parts = in_parts(
        read, pixels, len(pixels), device=weight.device, what="images",
        one="one image in the vision tower",
    )  # fmt: skip
    traces = {}
    for layer in layers:
        attention = tower.encoder.layers[layer].self_attn
        heads = [
            torch.cat([found[layer, name] for _, found in parts])
            .unflatten(-1, (attention.num_heads, -1))
            .transpose(1, 2)
            for name in ("q_proj", "k_proj")
        ]  # (n, H, S, c)
        traces[layer] = Trace(*heads, attention.scale)
    return torch.cat([features for features, _ in parts]), traces


@contextmanager
def _traced(tower: nn.Module, layers: Sequence[int]):
    """While it lasts, what the query and key projections of some layers give is kept."""
    found, hooks = {}, []

    def keep(layer: int, name: str):
        def hook(module: nn.Module, given: tuple, made: Tensor) -> None:
            found[layer, name] = made.detach()

        return hook

    try:
        for layer in layers:
            attention = tower.encoder.layers[layer].self_attn
            for name in ("q_proj", "k_proj"):
                hooks.append(getattr(attention, name).register_forward_hook(keep(layer, name)))
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _see(
    model: nn.Module,
    view: View,
    states: Tensor,
    traces: Mapping[int, Trace],
    per: str | None,
    extra: Mapping[str, Tensor],
    name: str,
) -> Seen:
    config = model.config
    cells = config.vision_config.image_size // config.vision_config.patch_size
    first = int(config.vision_feature_select_strategy == "default")
    project = model.model.multi_modal_projector
    features = states[:, first:]  # (n, P, C)
    newline = getattr(model.model, "image_newline", None)
    layout = view.layout
    rows = layout.fill(project(features).flatten(0, 1), newline)  # (T, D)
    # Not every method would notice: what chooses by distances or by a raster takes any numbers.
    if not bool(states.isfinite().all() & rows.isfinite().all()):
        raise RedlibError(
            f"the visual features of {name} hold NaN or infinity: pass finite pixels, and if the "
            "model overflows in float16, load it in bfloat16 or float32"
        )
    visual = ~layout.newlines
    plain = Layout(layout.sources[visual], layout.weights[visual])
    whole = Context(
        tokens=rows[torch.from_numpy(visual).to(rows.device)],
        features=plain.fill(features.flatten(0, 1), None),
        cls=states[:, 0] if first else None,
        grid=Grid(cells, cells),
        project=project,
        traces=traces,
        image=_name(view.pixels),
        extra=extra,
        pooling=_pooling(plain, _shapes(view, cells), view.tiles, cells, rows.device),
        smaller=_smaller(model, view.pixels, cells),
    )
    if view.tiles > 1 and per is None:
        raise RedlibError(
            f"this {view.kind} has {view.tiles} {view.part}s: say per='tile' (the budget holds for "
            f"each of the {view.part}s) or per='image' (for all of them together)"
        )
    owners = _owners(plain, cells, view.tiles)  # (V,)
    main = plain.sources[np.arange(len(plain)), plain.weights.argmax(1)]
    if per != "tile" or view.tiles == 1:
        units = (Unit(np.arange(len(plain)), whole, len(plain), name),)
    else:
        units = tuple(
            _tile(model, view, whole, plain, owners, tile, cells, name)
            for tile in range(view.tiles)
            if (owners == tile).any()
        )
    return Seen(view, rows, units, main)


def _tile(
    model: nn.Module,
    view: View,
    whole: Context,
    plain: Layout,
    owners: np.ndarray,
    tile: int,
    cells: int,
    name: str,
) -> Unit:
    """The unit of one tile: what is in the whole context, cut down to it."""
    numbers = np.flatnonzero(owners == tile)
    inside = plain.sources[numbers] // cells**2 == tile
    # A token pooled across the border of tiles counts the patches of its own tile alone.
    sources = np.where(inside, plain.sources[numbers] - tile * cells**2, 0)
    weights = np.where(inside, plain.weights[numbers], 0)
    part = Layout(sources, weights / weights.sum(1, keepdims=True))
    device = whole.tokens.device
    at = torch.from_numpy(numbers).to(device)
    if len(numbers) == len(plain):
        shape = _shapes(view, cells)[0]
    else:
        shape = _rectangle(view, cells, numbers, tile)
    full = cells**2 if view.kind == "image" else len(numbers)
    context = replace(
        whole,
        tokens=whole.tokens[at],
        features=whole.features[at],
        cls=None if whole.cls is None else whole.cls[tile : tile + 1],
        traces={
            layer: Trace(trace.queries[tile : tile + 1], trace.keys[tile : tile + 1], trace.scale)
            for layer, trace in whole.traces.items()
        },
        image=f"{_name(view.pixels[tile : tile + 1])}/{tile}",
        extra={name: whole.given(name)[at] for name in whole.extra},
        pooling=_pooling(part, (shape,), 1, cells, device),
        smaller=_smaller(model, view.pixels[tile : tile + 1], cells),
    )
    return Unit(numbers, context, full, f"{view.part} {tile} of {name}")


def _shapes(view: View, cells: int) -> tuple[tuple[int, int], ...]:
    """The rectangles that the visual tokens of a view fill one after another."""
    newlines = int(view.layout.newlines.sum())
    visual = len(view.layout) - newlines
    if view.kind == "video":
        half = (cells + 1) // 2
        return ((half, half),) * view.tiles
    if view.tiles > 1 and newlines > 1:  # the base tile and a picture, a newline a row
        return (cells, cells), (newlines, (visual - cells**2) // newlines)
    return ((cells, cells),) * view.tiles


def _rectangle(view: View, cells: int, numbers: np.ndarray, tile: int) -> tuple[int, int]:
    """(rows, columns) of the tokens of one tile of several."""
    shapes = _shapes(view, cells)
    if len(shapes) == view.tiles and len(set(shapes)) == 1:
        return shapes[0]
    if tile == 0:
        return shapes[0]
    row, column = np.divmod(numbers - cells**2, shapes[1][1])
    return len(np.unique(row)), len(np.unique(column))


def _owners(plain: Layout, cells: int, tiles: int) -> np.ndarray:
    """(V,) the tile to which each visual token owes most; of equals the first."""
    tile = plain.sources // cells**2  # (V, K)
    shares = [(plain.weights * (tile == t)).sum(1) for t in range(tiles)]
    return np.stack(shares, 1).argmax(1)


def _pooling(
    part: Layout, shapes: tuple[tuple[int, int], ...], tiles: int, cells: int, device: torch.device
) -> Pooling | None:
    """How tokens come from patches, None where it is one to one."""
    main = part.sources[:, 0]
    if part.sources.shape[1] == 1 and np.array_equal(main, np.arange(tiles * cells**2)):
        return None
    return Pooling(
        torch.from_numpy(part.sources).to(device),
        torch.from_numpy(part.weights).to(device),
        shapes,
        tiles,
    )


def _smaller(model: nn.Module, pixels: Tensor, cells: int):
    """A function that shows the tower these tiles with fewer patches."""

    def shrunk(height: int, width: int) -> Tensor:
        patch = model.config.vision_config.patch_size
        first = int(model.config.vision_feature_select_strategy == "default")
        exact = precise(pixels)
        if (height, width) == (cells, cells):
            states, _ = _tower(model, pixels, ())
        else:
            small = F.interpolate(
                exact, size=(height * patch, width * patch), mode="bicubic", antialias=True
            )
            states, _ = _tower(model, small, (), interpolate_pos_encoding=True)
        return model.model.multi_modal_projector(states[:, first:]).flatten(0, 1)

    return shrunk


def _name(pixels: Tensor) -> str:
    """What names a visual input: a hash of its pixels, the same in float16 as in float32."""
    rounded = pixels.detach().to("cpu", torch.float16).contiguous()
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:16]
