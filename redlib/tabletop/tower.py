"""Training the vision tower: a CLIP ViT whose patches know what they show.

CLIP learns from captions alone, on hundreds of millions of images. A tower that trains in half an
hour on two cores needs a shorter way, and takes two:

* a *contrastive* loss between the pooled [cls] token and the scene's phrases, as in CLIP. The text
  side is small (an embedding per word, an MLP per phrase, a sum over the phrases) and is not
  shipped;
* *dense labels* at the feature layer (hidden_states[-2], the one LLaVA reads): which object, which
  colour and which size covers each patch, and in which band of three rows and of three columns it
  lies. No real tower has these; the model card says so first. (Without the bands, a tower trained
  on windows forgets where its patches are, and a decoder cannot tell left from right.)

Most steps see *windows*: 8 x 8 or 12 x 12 patches cut out of a scene in pixel space and given their
own position embeddings. A window costs a ninth of a scene, and holds as much to learn per patch.
The last steps see whole scenes, where the 577 position embeddings meet for the first time.

OneVision's tower, a SigLIP, is trained the same way, from the trained CLIP on (`adopt`). It sees
the same scenes resized to 384 pixels, in 27 x 27 patches, has no [cls], and is read after its last
layer; the mean of its patches stands in for [cls] in the contrastive loss.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from redlib.geometry import Sight
from redlib.tabletop.loop import precision
from redlib.tabletop.world import COLOURS, GROUNDS, NOUNS, PATCH, SIDE, SIZES, WORDS, Scene, scenes

GRID = SIDE // PATCH
CLIP = Sight(SIDE, PATCH, crop=False)
THINGS = 1 + len(NOUNS) + len(WORDS)  # ground, nouns, words
CLEAR, FAINT = 0.3, 0.05  # covered at least so much: labelled; less than this: ground
BAND = 3  # rows, or columns, of patches that share a label of place
PARTS = (1.0, 0.5, 0.25, 0.25, 0.25)  # weights of the losses for thing, colour, size, row, column
FOREGROUND = 3.0  # weight of covered patches in the dense loss
IGNORE = -100
POOL = 1024
FRESH = 4  # scenes drawn anew per step
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)
HALF = torch.full((1, 3, 1, 1), 0.5)
LIGHT = {"clip_vision_model": (MEAN, STD), "siglip_vision_model": (HALF, HALF)}
STREAM = 50.0  # times as large a residual stream has an adopted tower, see `adopt`


@dataclass
class Example:
    """A scene as the tower's training sees it: pixels (s, s, 3), patch labels (5, k, k) for thing,
    colour, size, row and column, and per object its phrase ids and the patches that it covers. Of
    CLIP s is 336 and k 24, of SigLIP 384 and 27."""

    pixels: np.ndarray
    labels: np.ndarray
    phrases: np.ndarray  # (n, 3) noun, colour, size; a word is (32 + word, 8, 4)
    cover: np.ndarray  # (n, k, k)
    ground: int


def sight(tower: nn.Module) -> Sight:
    """How a tower sees a scene."""
    return Sight(tower.config.image_size, tower.config.patch_size, crop=False)


def squeezed(scene: Scene, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the scene as the stock processors resize it."""
    return np.array(scene.image.resize((side, side), Image.Resampling.BICUBIC))


def example(scene: Scene, sight: Sight) -> Example:
    """What the tower is taught of a scene.

    A patch is labelled by what covers most of it: as bare ground where that is less than FAINT of
    it, and not at all (IGNORE) where it is less than CLEAR.
    """
    cells, cover = sight.cells, scene.coverage(sight)
    phrases = [
        (NOUNS.index(o.noun), list(COLOURS).index(o.colour), list(SIZES).index(o.size))
        for o in scene.objects
    ]
    if scene.word:
        cover = np.vstack((cover, scene.word_coverage(sight)))
        phrases.append((len(NOUNS) + WORDS.index(scene.word), len(COLOURS), len(SIZES)))
    phrases = np.array(phrases)
    owner, share = cover.argmax(0), cover.max(0)
    labels = np.stack([phrases[owner, 0] + 1, phrases[owner, 1] + 1, phrases[owner, 2] + 1])
    labels[1][labels[1] == len(COLOURS) + 1] = 0
    labels[2][labels[2] == len(SIZES) + 1] = 0
    labels[:, share < FAINT] = 0
    labels[:, (share >= FAINT) & (share < CLEAR)] = IGNORE
    bands = np.indices((cells, cells)) // BAND
    return Example(
        squeezed(scene, sight.side),
        np.concatenate((labels.reshape(3, cells, cells), bands)),
        phrases,
        cover.reshape(-1, cells, cells),
        GROUNDS.index(scene.ground),
    )


class Heads(nn.Module):
    """What training needs beside a tower of cells x cells patches: dense heads, the text side, the
    two projections."""

    def __init__(self, width: int, cells: int, *, shared: int = 128):
        super().__init__()
        bands = cells // BAND
        self.dense = nn.ModuleList(
            nn.Linear(width, n) for n in (THINGS, 1 + len(COLOURS), 1 + len(SIZES), bands, bands)
        )
        self.norm = nn.LayerNorm(width)
        self.noun = nn.Embedding(len(NOUNS) + len(WORDS), shared)
        self.colour = nn.Embedding(len(COLOURS) + 1, shared)
        self.size = nn.Embedding(len(SIZES) + 1, shared)
        self.ground = nn.Embedding(len(GROUNDS), shared)
        self.phrase = nn.Sequential(nn.Linear(shared, 256), nn.GELU(), nn.Linear(256, shared))
        self.image = nn.Linear(width, shared, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.5))

    def text(self, phrases: list[np.ndarray], grounds: list[int]) -> torch.Tensor:
        """(B, shared): sum over the phrases of each scene, and its ground."""
        device = self.temperature.device
        owner = np.repeat(np.arange(len(phrases)), [len(p) for p in phrases])
        ids = torch.as_tensor(np.concatenate(phrases), device=device)
        each = self.phrase(self.noun(ids[:, 0]) + self.colour(ids[:, 1]) + self.size(ids[:, 2]))
        total = self.ground(torch.tensor(grounds, device=device))
        return total.index_add(0, torch.as_tensor(owner, device=device), each.to(total.dtype))


@torch.no_grad()
def begin(tower: nn.Module) -> None:
    """Start the patches' position embeddings as sines and cosines of row and column, a quarter of
    the width each, as in MAE. The stock start is a fiftieth as large as what the patches' pixels
    give, and after training the features held no trace of where their patch lay."""
    weight = tower.embeddings.position_embedding.weight
    width = weight.shape[1] // 4
    rates = 100.0 ** -(torch.arange(width, device=weight.device) / width)  # radians a patch
    place = torch.cartesian_prod(*2 * [torch.arange(GRID, device=weight.device)])  # (576, 2)
    angle = (place[:, :, None] * rates).flatten(1)  # (576, 2 * width)
    weight[1:] = torch.cat((angle.sin(), angle.cos()), 1)


@torch.no_grad()
def adopt(siglip: nn.Module, clip: nn.Module) -> None:
    """Let a SigLIP tower begin as a trained CLIP tower, as far as their architectures allow.

    Exact: the layers up to CLIP's feature layer are copied, and the patch convolution is rewritten
    for SigLIP's normalisation of pixels. Approximate:

    * CLIP normalises each patch before its first layer and SigLIP does not. The mean, scale and
      shift of that layer norm go into convolution and positions; the deviation, one per patch, is
      replaced by its mean over the patches of some training scenes;
    * the position embeddings of 24 x 24 patches are interpolated to 27 x 27;
    * layers no longer find the [cls] that they attended to;
    * SigLIP's gelu stands where CLIP's quick gelu stood, within about 0.02 of it.

    Training left CLIP's stream rescaled to a spread of one, beside which a step of Muon is large:
    a few of them would undo what the layers write. So the stream is first made STREAM times as
    large, which changes nothing else.
    """
    ours, theirs = siglip.embeddings, clip.embeddings
    norm = clip.pre_layrnorm
    mean, std = LIGHT[clip.config.model_type]
    centre, scale = LIGHT[siglip.config.model_type]
    kernel = theirs.patch_embedding.weight  # (D, 3, 14, 14)
    mean, std, centre, scale = (part.to(kernel) for part in (mean, std, centre, scale))
    patches = _patches(clip)
    place = theirs.position_embedding.weight[1:]  # (576, D)
    spread = (patches + place).std(-1, correction=0).mean()
    gain = norm.weight / spread

    def folded(rows: torch.Tensor) -> torch.Tensor:
        """(n, D), centred and scaled as the layer norm would."""
        return (rows - rows.mean(-1, keepdim=True)) * gain

    flat = (kernel * scale / std).flatten(1).T  # (588, D)
    ours.patch_embedding.weight.copy_(folded(flat).T.view_as(kernel))
    grey = (kernel * (centre - mean) / std).flatten(1).sum(1)  # what SigLIP's 0 is to CLIP
    ours.patch_embedding.bias.copy_(folded(grey[None])[0] + norm.bias)
    picture = folded(place).T.view(1, -1, GRID, GRID)
    cells = 2 * [sight(siglip).cells]
    stretched = F.interpolate(picture, size=cells, mode="bicubic", align_corners=False)
    ours.position_embedding.weight.copy_(stretched[0].flatten(1).T)
    for layer, trained in zip(siglip.encoder.layers, clip.encoder.layers[:-1], strict=True):
        layer.load_state_dict(trained.state_dict())
    rescale(siglip, STREAM)


def _patches(clip: nn.Module) -> torch.Tensor:
    """(8, 576, D): what CLIP's convolution gives for the patches of eight training scenes."""
    device = clip.embeddings.patch_embedding.weight.device
    shown = np.stack([scene.pixels for scene in scenes("train", 8)])
    return _convolved(clip, torch.from_numpy(shown).to(device)).flatten(2).transpose(1, 2)


def _convolved(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(B, D, k, k) from uint8 pixels (B, s, s, 3), normalised as the tower's processor does."""
    mean, std = (part.to(pixels.device) for part in LIGHT[tower.config.model_type])
    x = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    return tower.embeddings.patch_embedding(x)


def forward(
    tower: nn.Module, pixels: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a CLIP or SigLIP vision model on windows.

    Args:
        pixels: (B, s, s, 3) uint8.
        rows, cols: (B,) first row and column of each window in the tower's grid.

    Returns:
        patch features at the feature layer, (B, n, width), and pooled [cls], or of SigLIP the
        pooled mean of the patches, (B, width).
    """
    embed, layers = tower.embeddings, tower.encoder.layers
    with_cls = hasattr(embed, "class_embedding")
    x = _convolved(tower, pixels)
    k = x.shape[-1]
    step = torch.arange(k, device=x.device)
    row, col = rows[:, None, None] + step[:, None], cols[:, None, None] + step
    where = (row * sight(tower).cells + col).flatten(1)  # (B, k*k)
    x = x.flatten(2).transpose(1, 2) + embed.position_embedding(where + with_cls)
    if not with_cls:
        for layer in layers:
            x = layer(x, attention_mask=None)
        return x, tower.post_layernorm(x.mean(1))
    cls = embed.class_embedding + embed.position_embedding.weight[0]
    x = torch.cat((cls.expand(len(x), 1, -1).to(x.dtype), x), 1)  # (B, 1 + k*k, D)
    x = tower.pre_layrnorm(x)
    for layer in layers[:-1]:
        x = layer(x, attention_mask=None)
    pooled = layers[-1](x, attention_mask=None)[:, 0]
    return x[:, 1:], tower.post_layernorm(pooled)


def features(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(B, L, width): the features of whole images, uint8 pixels (B, s, s, 3)."""
    zero = torch.zeros(1, dtype=torch.long, device=pixels.device)
    return forward(tower, pixels, zero, zero)[0]


@torch.no_grad()
def spread(tower: nn.Module, device: torch.device, *, images: int = 32) -> float:
    """Standard deviation of the features of some training scenes around their mean vector."""
    side, found = sight(tower).side, []
    for scene in scenes("train", images):
        x = torch.from_numpy(squeezed(scene, side)).to(device)
        found.append(features(tower, x[None])[0])
    rows = torch.cat(found)
    return float((rows - rows.mean(0)).square().mean().sqrt())


@torch.no_grad()
def rescale(tower: nn.Module, factor: float) -> None:
    """Multiply the residual stream by a factor, which changes no other number: every block reads
    the stream through a layer norm, so scaling all that is written to it is all there is to do.

    Muon lets the stream grow to a spread of some fifty, and the projector, which has no norm in
    front of it, learns poorly from that.
    """
    embed = tower.embeddings
    written = [tower.pre_layrnorm] if hasattr(embed, "class_embedding") else [embed]
    for layer in tower.encoder.layers:
        written += [layer.self_attn.out_proj, layer.mlp.fc2]
    for module in written:
        for weight in module.parameters():
            weight.mul_(factor)


class Windows:
    """A pool of training scenes, renewed a little at every step, from which windows are cut for a
    tower of that sight."""

    def __init__(self, seed: int, device: torch.device, sight: Sight, *, pool: int = POOL):
        self.seed, self.device, self.sight, self.size = seed, device, sight, pool
        self.pool: dict[int, Example] = {}

    def _get(self, number: int) -> Example:
        if number not in self.pool:
            if len(self.pool) >= self.size + 64:
                for old in sorted(self.pool)[:64]:
                    del self.pool[old]
            self.pool[number] = example(scenes("train", 1, start=number)[0], self.sight)
        return self.pool[number]

    def batch(self, step: int, size: int, side: int) -> dict:
        """`size` windows of side x side patches; scenes come from the pool as of this step."""
        rng = np.random.default_rng([self.seed, step, side])
        newest = self.size // 8 + FRESH * step
        oldest = max(0, newest - self.size)
        chosen = [self._get(int(n)) for n in rng.integers(oldest, newest, size)]
        cells, patch = self.sight.cells, self.sight.patch
        room = cells - side + 1
        # Nine windows in ten lie over an object: bare ground is soon learned, objects are not.
        rows, cols = rng.integers(0, room, size), rng.integers(0, room, size)
        for i in np.flatnonzero(rng.random(size) < 0.9):
            cover = chosen[i].cover
            r, c = np.unravel_index(cover[rng.integers(len(cover))].argmax(), (cells, cells))
            rows[i] = np.clip(r - rng.integers(side), 0, room - 1)
            cols[i] = np.clip(c - rng.integers(side), 0, room - 1)
        cut = [np.s_[r : r + side, c : c + side] for r, c in zip(rows, cols, strict=True)]
        pixels = np.stack(
            [
                e.pixels[r * patch : (r + side) * patch, c * patch : (c + side) * patch]
                for e, r, c in zip(chosen, rows, cols, strict=True)
            ]
        )
        phrases = []
        for e, window in zip(chosen, cut, strict=True):
            seen = np.array([c[window].sum() / max(c.sum(), 1e-9) for c in e.cover])
            phrases.append(e.phrases[seen > 0.4])
        labels = np.stack([e.labels[:, w[0], w[1]] for e, w in zip(chosen, cut, strict=True)])
        return {
            "pixels": torch.from_numpy(pixels).to(self.device),
            "rows": torch.as_tensor(rows, device=self.device),
            "cols": torch.as_tensor(cols, device=self.device),
            "labels": torch.as_tensor(labels, device=self.device).flatten(2),  # (B, 5, n)
            "phrases": phrases,
            "grounds": [e.ground for e in chosen],
        }


def losses(
    tower: nn.Module, heads: Heads, batch: dict, *, dense: bool = True
) -> tuple[torch.Tensor, dict[str, float]]:
    """A scalar, dense cross-entropies plus the symmetric contrastive loss, and both as numbers;
    without `dense` the heads learn to read the features, for the log, and the tower does not learn
    from them."""
    device = batch["rows"].device
    with precision(device):
        found, pooled = forward(tower, batch["pixels"], batch["rows"], batch["cols"])
        shown = heads.norm(found if dense else found.detach())
        logits = [head(shown).float() for head in heads.dense]
        image = heads.image(pooled)
    total = torch.zeros((), device=device)
    for k, scores in enumerate(logits):
        target = batch["labels"][:, k].flatten()
        weight = torch.ones(scores.shape[-1], device=device)
        weight[1:] = FOREGROUND if k < 3 else 1.0
        part = F.cross_entropy(scores.flatten(0, 1), target, weight=weight, ignore_index=IGNORE)
        total = total + part * PARTS[k]
    image = F.normalize(image.float(), dim=-1)
    text = F.normalize(heads.text(batch["phrases"], batch["grounds"]).float(), dim=-1)
    scores = image @ text.T * heads.temperature.exp().clamp(max=50)
    # Windows that show the same phrases are no negatives of each other.
    keys = [
        (g, tuple(map(tuple, p))) for g, p in zip(batch["grounds"], batch["phrases"], strict=True)
    ]
    index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    key = torch.tensor([index[k] for k in keys], device=device)
    same = (key[:, None] == key[None, :]) & ~torch.eye(len(keys), dtype=torch.bool, device=device)
    scores = scores.masked_fill(same, -1e4)
    target = torch.arange(len(keys), device=device)
    contrast = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    numbers = {"dense": float(total.detach()), "contrastive": float(contrast.detach())}
    return total + 0.5 * contrast, numbers


@torch.no_grad()
def accuracy(
    tower: nn.Module,
    heads: Heads,
    device: torch.device,
    *,
    images: int = 48,
    split: str = "calibration",
) -> dict[str, float]:
    """Held-out, on whole scenes: share of clearly covered patches whose thing (colour) the dense
    head names, of bare patches called bare, of all patches put into their own band of rows and of
    columns, and of scenes matched to their own phrases among `images`."""
    found = [example(s, sight(tower)) for s in scenes(split, images)]
    hits: dict[str, list] = {"thing": [], "colour": [], "bare": [], "place": []}
    pooled_all = []
    zero = torch.zeros(1, dtype=torch.long, device=device)
    for e in found:
        x = torch.from_numpy(e.pixels).to(device)[None]
        with precision(device):
            patches, pooled = forward(tower, x, zero, zero)
            shown = heads.norm(patches)
            best = [head(shown)[0].argmax(-1).cpu().numpy() for head in heads.dense]
            pooled_all.append(heads.image(pooled).float())
        labels = e.labels.reshape(len(best), -1)
        hits["thing"].append((best[0] == labels[0])[labels[0] > 0])
        hits["colour"].append((best[1] == labels[1])[labels[1] > 0])
        hits["bare"].append((best[0] == 0)[labels[0] == 0])
        hits["place"].append((best[3] == labels[3]) & (best[4] == labels[4]))
    text = heads.text([e.phrases for e in found], [e.ground for e in found]).float()
    scores = F.normalize(torch.cat(pooled_all), dim=-1) @ F.normalize(text, dim=-1).T
    right = (scores.argmax(1) == torch.arange(len(found), device=device)).float().mean()
    means = {f"patch {key}": float(np.concatenate(v).mean()) for key, v in hits.items()}
    return {**means, "retrieval": float(right)}
