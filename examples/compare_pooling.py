# %% [markdown]
# # Compare four poolings
#
# The network computes a map per class, but the labels are for the whole image. The pooling of the map into one score
# decides which regions receive gradient: the maximum trains one region, the average all of them, WELDON the highest and
# the lowest, and WILDCAT weights the lowest by alpha (Durand et al., CVPR 2017, Table 1).
#
#     python examples/compare_pooling.py [DATA] [OUT]
#
# DATA is any layout that `wildcat datasets` lists, best with boxes. Without it, 500 synthetic images are generated.

# %%
import sys
import tempfile
from pathlib import Path

from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.evaluation import evaluate
from wildcat.reproduce.heads import predictions_from_features, train_head
from wildcat.settings import method_settings
from wildcat.viz import side_by_side

given = [] if "ipykernel" in sys.modules else sys.argv[1:]
DATA = given[0] if given else "shapes"
OUT = Path(given[1] if given[1:] else tempfile.mkdtemp(prefix="wildcat-"))
OUT.mkdir(parents=True, exist_ok=True)

METHODS = {"max": "deepmil", "average": "gap-a", "weldon": "weldon", "wildcat": "wildcat"}  # see wildcat.methods

# %% [markdown]
# ## One set of features, four heads
#
# The features of the frozen ImageNet network are computed once and cached. Each pooling trains its own head on them for
# the same number of epochs. The last epoch is kept, so that nothing is chosen on the measured images.

# %%
data = open_dataset(DATA)
models = {}
for pooling, method in METHODS.items():
    config = TrainConfig(tune="head", image_size=224, epochs=15, val_split="none", **method_settings(method))
    models[pooling] = train_head(data, config)

# %% [markdown]
# ## Metrics
#
# Average precision of the labels and, if the data has boxes, of the points: is the highest region of the map on the
# object? This is one seed on a small data set: differences of a point or two mean nothing. `wildcat reproduce` runs the
# tables of the paper with several seeds.

# %%
split = next(name for name in ("val", "test") if name in data.splits)
samples = data.split(split)
table = ["| pooling | labels, mAP % | points, mAP % |", "|---|---|---|"]
for pooling, model in models.items():
    metrics = evaluate(model, data, split, predictions=predictions_from_features(model, samples))
    pointing = f"{100 * metrics['pointing']['map']:.1f}" if "pointing" in metrics else "-"
    table.append(f"| {pooling} | {100 * metrics['classification']['map']:.1f} | {pointing} |")
print("\n".join(table))

# %% [markdown]
# ## The maps
#
# The same images and class with each pooling. On easy images the four agree.

# %%
shown = []
for sample in samples[:4]:
    predictions = [model.predict(sample.path) for model in models.values()]
    shown += [prediction.plot(predictions[-1].top) for prediction in predictions]

sheet = side_by_side(shown, list(models) * (len(shown) // len(models)), columns=len(models), height=240)
sheet.save(OUT / "poolings.png")
(OUT / "poolings.md").write_text("\n".join(table) + "\n")
print(f"Open {OUT / 'poolings.png'}.")
sheet
