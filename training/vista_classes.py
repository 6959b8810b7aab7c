"""The published class table of VISTA3D, and which of its class indices a plan's structures are prompted by.

Source: ``docs/labels.json`` of the ``vista3d`` bundle in Project-MONAI/model-zoo (the same as ``label_dict.json`` of
Project-MONAI/VISTA up to 132). Its README names five indices that the weights do not support; they are left out here:
16 prostate or uterus, 18 rectum, 129 kidney mass, 130 liver tumor, 131 vertebrae L6.
"""

from datamodules.plan import Plan
from training.errors import TrainingError

__all__ = ["CLASSES", "EMBEDDINGS", "LAST_PUBLISHED", "class_indices"]

LAST_PUBLISHED = 132
EMBEDDINGS = 512  # the class head's table has room for as many, index 0 (background) included

_ORGANS = {
    1: "liver, kidney, spleen, pancreas, right kidney, aorta, inferior vena cava, right adrenal gland, left adrenal gland",
    10: "gallbladder, esophagus, stomach, duodenum, left kidney, bladder",
    17: "portal vein and splenic vein",
    19: "small bowel, lung, bone, brain, lung tumor, pancreatic tumor, hepatic vessel, hepatic tumor, colon cancer primaries",
    28: "left lung upper lobe, left lung lower lobe, right lung upper lobe, right lung middle lobe, right lung lower lobe",
    57: "trachea, left iliac artery, right iliac artery, left iliac vena, right iliac vena, colon",
    87: "left humerus, right humerus, left scapula, right scapula, left clavicula, right clavicula, left femur, right femur",
    95: "left hip, right hip, sacrum, left gluteus maximus, right gluteus maximus, left gluteus medius, right gluteus medius",
    102: "left gluteus minimus, right gluteus minimus, left autochthon, right autochthon, left iliopsoas, right iliopsoas",
    108: "left atrial appendage, brachiocephalic trunk, left brachiocephalic vein, right brachiocephalic vein",
    112: "left common carotid artery, right common carotid artery, costal cartilages, heart, left kidney cyst",
    117: "right kidney cyst, prostate, pulmonary vein, skull, spinal cord, sternum, left subclavian artery",
    124: "right subclavian artery, superior vena cava, thyroid gland, vertebrae S1, bone lesion",
    132: "airway",
}
_VERTEBRAE = [f"{part}{n}" for part, count in (("L", 5), ("T", 12), ("C", 7)) for n in range(count, 0, -1)]

CLASSES: dict[str, int] = {
    **{name: first + n for first, names in _ORGANS.items() for n, name in enumerate(names.split(", "))},
    **{f"vertebrae {name}": 33 + n for n, name in enumerate(_VERTEBRAE)},
    **{f"{side} rib {n}": first + n for side, first in (("left", 62), ("right", 74)) for n in range(1, 13)},
}
"""Name → class index."""

_BY_KEY = {name.casefold(): index for name, index in CLASSES.items()}


def class_indices(plan: Plan) -> tuple[int, ...]:
    """The class index of each of the plan's structures.

    ``network_args["classes"]`` decides first, then VISTA3D's own name in any case and with ``_`` for a space; a new structure
    gets the lowest index above the published ones that is free. Raises TrainingError for an override that is no structure of
    the plan or no index of the table, and for two structures on one index.
    """
    given = plan.network_args.get("classes", {})
    _check(given, plan)
    named = {name: given.get(name) or _BY_KEY.get(name.casefold().replace("_", " ")) for name in plan.structures}
    taken = [index for index in named.values() if index]
    if twice := sorted({index for index in taken if taken.count(index) > 1}):
        shared = ", ".join(name for name, index in named.items() if index == twice[0])
        raise _unfit(f"{shared} are all class {twice[0]}", "give one of them another index in network_args classes")
    free = iter(index for index in range(LAST_PUBLISHED + 1, EMBEDDINGS) if index not in taken)
    try:
        return tuple(index or next(free) for index in named.values())
    except StopIteration:
        raise _unfit(f"no index is free for {len(named)} structures", f"VISTA3D takes {EMBEDDINGS - 1} classes") from None


def _check(given: object, plan: Plan) -> None:
    if not isinstance(given, dict):
        raise _unfit(f"classes must be structure: index, not {given!r}", "mend network_args classes")
    if unknown := sorted(set(given) - set(plan.structures)):
        raise _unfit(f"classes name no structure: {', '.join(unknown)}", f"the plan has {', '.join(plan.structures)}")
    for name, index in given.items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 < index < EMBEDDINGS:
            raise _unfit(f"classes: {name} is {index!r}", f"give an index from 1 to {EMBEDDINGS - 1}")


def _unfit(problem: str, remedy: str) -> TrainingError:
    return TrainingError(problem, about="plan", remedy=remedy)
