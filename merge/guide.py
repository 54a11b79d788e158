"""Advice on every method of the catalogue: when to use it, what it costs, and where it differs from what was
published. Loads no torch.

``GET /v1/methods``, the dashboard and docs/methods.md tell it beside what the method needs, its paper and
what our bench measured; a test sees that nothing is left out. Costs are beside the reading of all models and
the writing of one, which every merge does; measured times are in bench/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from merge.catalog import MethodEntry
from merge.recipe.presets import PresetEntry


@dataclass(frozen=True, slots=True)
class Advice:
    """One sentence or two each."""

    use: str
    costs: str
    differs: str


_NOTHING = "Nothing more."
_AGAIN = "One more reading of the models."
_RANKED = "One more reading of the models, for the thresholds."
_PUBLISHED = "As published."
_OURS = "Our own: no paper."
_EIGEN = "A GPU pays."

GUIDE: dict[str, Advice] = {
    "activation_trim": Advice(
        "Before `task_arithmetic` or `ties`, where there are texts of every task: inputs that a task never "
        "uses need no change.",
        "One forward pass of every source on its texts, and one more reading of the models.",
        "Our own, after Wanda's score for pruning (arXiv:2306.11695), which is about weights, not changes.",
    ),
    "aim": Advice(
        "After any merge, where the base's own abilities must not suffer and there is text of any kind.",
        "One forward pass of the base on the calibration texts, kept for the next merge over that base.",
        "Sums are kept in float32; a tied head is decided once; (in, out) weights are held back along the "
        "right axis. `control: uniform` shrinks as much without AIM's choice, which was not published.",
    ),
    "arcee_fusion": Advice(
        "For one source and a base, to bring in its most telling changes and no others.",
        "A softmax of every row, and three more readings of the models.",
        "Quartiles are exact; mergekit takes them from a sample without a seed.",
    ),
    "breadcrumbs": Advice(
        "Before `task_arithmetic` or `ties`, where a few very large changes are suspected to be noise.",
        _RANKED,
        "Nothing is lost of small tensors, which mergekit sets to zero where gamma is less than one entry.",
    ),
    "cat_svd": Advice(
        "For LoRA adapters over one base that are to become one adapter, exactly or at a rank or error asked "
        "for.",
        "Two QRs and an SVD as large as the ranks together, for each module: next to nothing.",
        "What PEFT calls cat and svd, without full matrices, at any ranks, and with the loss told.",
    ),
    "clip_outliers": Advice(
        "After a merge whose result will be quantised.",
        "One more reading of the models, unless each entry is held to its sources.",
        _OURS,
    ),
    "consensus_ta": Advice(
        "For five and more experts of one base, to drop what only one of them needs.",
        _NOTHING,
        "As published, with a warning where the threshold also drops what all agree on (from 1 / (N - 1)); "
        "one source alone is taken whole.",
    ),
    "core_space": Advice(
        "For LoRA adapters of different tasks that get in each other's way: what `tsv_m` and `iso_c` do, at "
        "the cost of adapters, and votes (`ties`) on directions instead of entries.",
        "Two QRs and an SVD for each adapter and two SVDs as wide as the ranks together, for each module: "
        "next to nothing.",
        "Factors are first written in one common way (`balance`), since how each adapter is stored turns the "
        "vote of `ties`; directions that no adapter has are not raised; where ranks differ, none is cut to "
        "their mean; even votes elect nobody (published: the sign that most entries have, which depends on "
        "the arbitrary signs of singular vectors).",
    ),
    "dare": Advice(
        "Before `task_arithmetic` or `ties`, where there are many experts with small changes; not where "
        "changes are large.",
        _NOTHING,
        "Draws depend on the recipe's seed, the source and the tensor alone, not on devices or order. "
        "`rescale: l1` is mergekit's.",
    ),
    "della": Advice(
        "As `dare`, where large changes should be dropped less often than small ones.",
        "Ranks within every row.",
        "A row of one entry is kept with probability density (published: 0 / 0). `rescale: l1` is "
        "mergekit's.",
    ),
    "doge": Advice(
        "For image classifiers as in its paper; for a language model only with an `eta` that you have tuned.",
        "An eigendecomposition for each source and matrix, and 400 steps that take ten times as long "
        "and longer; one more reading of the models.",
        "Steps stay out of the shared directions (`projected: slopes` for the published ones); 100 per cent "
        "density works; every matrix is merged.",
    ),
    "emr": Advice(
        "As one model: where `ties` is too timid. As the bundle `emr`: experts that no single "
        "model replaces.",
        _NOTHING,
        "An even vote leaves the base (`on_tie: minus` for the published). As a merge it is the unified "
        "vector alone; masks and factors are in the bundle.",
    ),
    "expo": Advice(
        "For an aligned model and the one it was aligned from: a little further, alpha 0.1 to 0.5, scored.",
        _NOTHING,
        _PUBLISHED,
    ),
    "fisher": Advice(
        "Where there are texts of every task, and as the classical comparison; `regmean` usually does "
        "better.",
        "A backward pass of every source on its texts; with `estimator: exact` one for every label.",
        "Gradients of single sequences, not of batches; weights that no text reaches are averaged instead of "
        "decided by a floor. The published soft estimator, whose gradient is zero, is not offered.",
    ),
    "iso_c": Advice(
        "For many experts of one base with tasks that have much in common; `scale` must be tuned.",
        f"An eigendecomposition for each matrix. {_EIGEN}",
        "Only directions that the sum has are raised (published: also arbitrary ones, where the rank is not "
        "full).",
    ),
    "iso_cts": Advice(
        "As `iso_c`, for experts with less in common.",
        "Two large eigendecompositions for each matrix and small ones; three and one for each source where "
        f"rows are more than columns. {_EIGEN}",
        "As `iso_c`; directions that several tasks bring count once.",
    ),
    "karcher": Advice(
        "For sources without a known base, or several runs of one training.",
        _AGAIN,
        "Sources may have weights; inner products are in float64 (mergekit: in the dtype of storage).",
    ),
    "knots": Advice(
        "For models tuned with LoRA whose changes hardly meet entry by entry.",
        f"An eigendecomposition for each matrix, and products with its basis. {_EIGEN}",
        "Each matrix is trimmed for itself (published: all together). No choice of mean, which would be the "
        "plain mean.",
    ),
    "layer_swap": Advice(
        "For a language expert and a task expert of one base.",
        "Nothing more; one more reading of the models where borders are found.",
        "Borders may be found from the weights (`borders: auto`: ours). The paper's own numbers of layers "
        "are not known to us.",
    ),
    "linear": Advice(
        "For models without a known base, and several runs of one training (a soup).",
        _NOTHING,
        _PUBLISHED,
    ),
    "localize_and_stitch": Advice(
        "For many experts with conflicting tasks; strong without data in MergeBench.",
        "One more reading of the models; forward and backward passes of every source in every epoch where "
        "regions are trained.",
        "Stitching divides by all experts that meet (MergeBench's code counts one); the sparsity term "
        "punishes (published code: rewards).",
    ),
    "lora_lego": Advice(
        "For LoRA adapters of different tasks and ranks, and to prune one adapter.",
        "Products of the adapters' pieces with each other: next to nothing.",
        "Compares what pieces change, so that (a, b) and (-a, -b) are the same (`features: normalized` for "
        "the published); begins without chance.",
    ),
    "magmax": Advice(
        "For models tuned one after another, where later ones should not wash out earlier ones.",
        _NOTHING,
        "Opposite moves of one size leave the base, whatever the order (published: the first source wins).",
    ),
    "model_stock": Advice(
        "For two or more runs of one training and their base.",
        _AGAIN,
        "The way to the base is held between 0 and 1; without that it diverges where task vectors oppose "
        "each other.",
    ),
    "multislerp": Advice(
        "For several sources on the sphere, where lengths should stay.",
        _AGAIN,
        "The true spherical mean; mergekit's method of this name is `multislerp_flat`.",
    ),
    "multislerp_flat": Advice(
        "To repeat mergekit's `multislerp`.",
        _AGAIN,
        "As mergekit has it.",
    ),
    "nearswap": Advice(
        "For a base that stays in charge, and one source to lean towards.",
        _NOTHING,
        _PUBLISHED,
    ),
    "norm_repair": Advice(
        "After `linear`, `task_arithmetic`, `model_stock` or `unlearn`, where changes cancelled or piled up; "
        "score with and without.",
        _AGAIN,
        _OURS,
    ),
    "nuslerp": Advice(
        "For two models, with or without a base.",
        _AGAIN,
        "`along` says rows or columns as they are (mergekit's row_wise interpolates columns).",
    ),
    "opcm": Advice(
        "For a collection that grows: one more model joins later without the others.",
        "An eigendecomposition for each matrix and source after the first, twice. " + _EIGEN,
        "The least directions that make up the share (`block: published` for one fewer); alpha 1 works; "
        "every tensor counts. The same result by thin factors.",
    ),
    "optmerge": Advice(
        "For experts of one base, multimodal ones too, as a less noisy `wudi`; `scale` must be tuned.",
        f"Two eigendecompositions for each source and matrix, and one more. {_EIGEN}",
        "In closed form (`solver: iterate` for the published steps, whose length decides the result).",
    ),
    "passthrough": Advice(
        "To convert one model, apply an adapter for good, or stack layers with slices.",
        _NOTHING,
        "Copies bytes.",
    ),
    "pcb": Advice(
        "For experts whose changes compete, after `ties`; beware of a few outliers (`clip`).",
        "Two more readings of the models, and twice the time of `ties`.",
        "The authors' three programs by name (`inter`); entries against the sum never win; a zero task "
        "vector divides nothing by zero.",
    ),
    "ram": Advice(
        "For models tuned by reinforcement learning, whose changes are sparse.",
        _NOTHING,
        _PUBLISHED,
    ),
    "ramplus_tl": Advice(
        "As `ram`, where averaging leaves single sources too quiet.",
        _AGAIN,
        _PUBLISHED,
    ),
    "rcp": Advice(
        "For a reasoning model that should learn a domain, with texts of both.",
        "Forward and backward passes of both models on their texts.",
        "Entries that no text reaches keep the prior (published: take the domain); differences are not taken "
        "in sixteen bits; models of other bases are told.",
    ),
    "regmean": Advice(
        "Where there is some unlabelled text of every task; strong on small models.",
        "A forward pass of every source on its texts, and a solve for each matrix; its Gram matrices are "
        "large files.",
        "Solved around the mean, so that equal models stay themselves where there are few texts; texts "
        "belong to their source by name, not by position.",
    ),
    "regmean_pp": Advice(
        "As `regmean`, where its error piles up from layer to layer.",
        "About two forward passes of every source, block by block, and the solves.",
        "As `regmean`.",
    ),
    "rmm": Advice(
        "To see what a bundle of kind `rmm` keeps of many adapters that must each come back.",
        "A small SVD for each row and column of a module.",
        "Factors are first written in one common way (`balance`), since each adapter's own depends on its "
        "training.",
    ),
    "sce": Advice(
        "For several experts, where only entries on which they differ should move.",
        "One more reading of the models; two where `density` is below 1.",
        "One source is taken whole (published: lost, as nothing differs); small changes have shares "
        "(mergekit has a floor).",
    ),
    "slerp": Advice(
        "For two models without a known base.",
        _AGAIN,
        _PUBLISHED,
    ),
    "task_arithmetic": Advice(
        "First, always, and with several values of `scale`: the only method that gains reliably on language "
        "models in an independent study (arXiv:2511.21437).",
        _NOTHING,
        _PUBLISHED,
    ),
    "ties": Advice(
        "For experts of one base that pull in different directions.",
        _RANKED,
        "Exactly the share asked for is kept, and what equals the threshold (published code: one more). "
        "Thresholds over the model (`scope: global`, as published) or a tensor (mergekit).",
    ),
    "trim": Advice(
        "Before another method, to keep the largest changes alone.",
        _RANKED,
        "TIES's first step by itself.",
    ),
    "tsv_m": Advice(
        "For many experts of one base with clearly different tasks, where averaging blurs all.",
        f"An eigendecomposition for each source and matrix, and two more. {_EIGEN}",
        "Directions that nobody has stay empty (published: arbitrary vectors, where sources are copies or "
        "adapters). `variant: reweighted_experimental` is our own reading of R-TSVM, whose equations we "
        "could not read.",
    ),
    "unlearn": Advice(
        "To reduce a behaviour that a model was tuned on for that purpose. It does not delete knowledge.",
        "Nothing more; one more reading of the models with `top`.",
        "Embeddings, heads, norms and biases stay unless asked for; skills to keep can be protected.",
    ),
    "widen": Advice(
        "For a chat model and one that was pretrained further, whose changes differ in size.",
        "One more reading of the models, for sums down the columns.",
        "Equal columns share a rank; columns of zeros divide nothing; `normalize` takes back what the "
        "published sum overdoes.",
    ),
    "wudi": Advice(
        "For a few fully tuned experts of one base that disagree.",
        "An eigendecomposition as large as the inputs for each matrix. A GPU pays.",
        "In closed form (`solver: adam` with `start: sum` for the published steps, whose length decides the "
        "result), and only along directions that take part: the exact minimum, `filter: none`, was worse on "
        "all of our benches.",
    ),
}


def advice_on(entry: MethodEntry) -> Advice:
    """On a method, or on a preset: that is for what the methods of its chain are for."""
    if not isinstance(entry, PresetEntry):
        return GUIDE[entry.name]
    parts = [GUIDE[step["method"]] for step in entry.steps]
    return Advice(
        " ".join(part.use for part in parts),
        _told_once([part.costs for part in parts], _NOTHING),
        _told_once([part.differs for part in parts], _PUBLISHED),
    )


def _told_once(sentences: Sequence[str], nothing: str) -> str:
    """The sentences one after another, none twice; ``nothing`` only where there is no other."""
    return " ".join(dict.fromkeys(each for each in sentences if each != nothing)) or nothing
