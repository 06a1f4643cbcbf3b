# %% [markdown]
# # How should a map become a score?
#
# A network gives each class a map over the image, but only the tag of the whole image is known. How the map is
# pooled into one score decides which regions learn, and so where the heat lies: the maximum teaches one region, the
# average all of them, WELDON the highest and the lowest, and WILDCAT weighs the lowest by alpha (Durand et al., CVPR
# 2017, Table 1).
#
#     python examples/compare_pooling.py [DATA] [OUT]
#
# DATA is anything `wildcat datasets` lists, best with boxes; without it, 500 synthetic images of shapes are used.

# %%
import sys
import tempfile
from pathlib import Path

from wildcat.config import TrainConfig, method_settings
from wildcat.data import open_dataset
from wildcat.evaluation import evaluate
from wildcat.reproduce.heads import predictions_from_features, train_head
from wildcat.viz import side_by_side

given = [] if "ipykernel" in sys.modules else sys.argv[1:]
DATA = given[0] if given else "shapes"
OUT = Path(given[1] if given[1:] else tempfile.mkdtemp(prefix="wildcat-"))
OUT.mkdir(parents=True, exist_ok=True)

METHODS = {"max": "deepmil", "average": "gap-a", "weldon": "weldon", "wildcat": "wildcat"}
"""Pooling -> who published it with nothing else around it; see wildcat.config.METHODS."""

# %% [markdown]
# ## One set of features, four heads
#
# The features of the frozen ImageNet network are computed once and cached; each pooling then trains its own head on
# them, for the same number of epochs. Nothing is chosen on the images it is measured on: the last epoch counts.

# %%
data = open_dataset(DATA)
models = {}
for pooling, method in METHODS.items():
    config = TrainConfig(tune="head", image_size=224, epochs=15, val_split="none", **method_settings(method))
    models[pooling] = train_head(data, config)

# %% [markdown]
# ## The figures
#
# Average precision of the tags, and of the points where the data has boxes: does the highest place of the map lie on
# the thing? This is one seed on a small set: differences of a point or two mean nothing. `wildcat reproduce` repeats
# the paper's tables with several seeds.

# %%
split = next(name for name in ("val", "test") if name in data.splits)
samples = data.split(split)
table = ["| pooling | tags, mAP % | points, mAP % |", "|---|---|---|"]
for pooling, model in models.items():
    measured = evaluate(model, data, split, predictions=predictions_from_features(model, samples))
    pointing = f"{100 * measured['pointing']['map']:.1f}" if "pointing" in measured else "-"
    table.append(f"| {pooling} | {100 * measured['classification']['map']:.1f} | {pointing} |")
print("\n".join(table))

# %% [markdown]
# ## The maps
#
# The same images and class under each. On easy images the four agree; look for those where they do not.

# %%
shown = []
for sample in samples[:4]:
    predictions = [model.predict(sample.path) for model in models.values()]
    shown += [prediction.plot(predictions[-1].top) for prediction in predictions]

sheet = side_by_side(shown, list(models) * (len(shown) // len(models)), columns=len(models), height=240)
sheet.save(OUT / "poolings.png")
(OUT / "poolings.md").write_text("\n".join(table) + "\n")
print(f"Look at {OUT / 'poolings.png'}.")
sheet
