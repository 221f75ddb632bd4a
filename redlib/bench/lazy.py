"""What stopping early saves: the forwards behind one codebook (`redlib.stages`).

The thresholds are the paper's, and the 96 ranks of the released code are looked at: on the small
model both leave more tokens in than its own thresholds or all 576 ranks would. Counts, not times:
the same on every machine, and as exact on a few images as on many.
"""

from redlib import stages
from redlib.codebook import Criteria
from redlib.models import VLM
from redlib.params import ONE_WORD_PROMPT, family
from redlib.tabletop import scenes

IMAGES = 6
START = 1_000_000
"""The first training scenes of the codebook, as in notebook 05."""


def lazy_codebook(
    vlm: VLM, *, images: int = IMAGES, criteria: Criteria | None = None, ranks: str = "release"
) -> dict[str, int]:
    """Read `images` training scenes for one codebook, lazily, and count the forwards.

    criteria: by default the paper's for the model's family.

    Returns images, global_lazy, global_eager, all_lazy, all_eager: forwards as `stages.tally`
    counts them, of the stage "global" and of all stages.
    """
    criteria = criteria or Criteria.paper(family(vlm.name)).for_images(images)
    how = stages.Probing(ONE_WORD_PROMPT, ranks=ranks)
    drawn = {scene.id: scene.image for scene in scenes("train", images, start=START)}
    table = stages.read_images(vlm, drawn, [criteria], how)
    counts = stages.tally(table, [criteria], how.weights).set_index("stage")
    found = {"images": images}
    for side, column in (("lazy", "forwards"), ("eager", "eager")):
        found[f"global_{side}"] = int(counts.loc["global", column])
        found[f"all_{side}"] = int(counts[column].sum())
    return found
