# %% [markdown]
# # Your own folder of labelled images
#
# You have images with labels for the whole image. This script trains a model on these labels alone, measures it, shows
# where it finds the classes, and writes annotations to correct or to train a detector with.
#
#     python examples/your_own_folder.py [DATA] [OUT]
#
# DATA is one folder per class, a CSV file with the columns `image,labels`, or any other layout of `wildcat datasets`.
# Without it, the script generates 500 synthetic images of shapes. In a notebook, set DATA in the next cell.

# %%
import sys
import tempfile
from pathlib import Path

import wildcat
from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.evaluation import evaluate
from wildcat.export import ANNOTATION_FORMATS
from wildcat.fitting.calibrate import calibrate
from wildcat.models.calibration import write_calibration
from wildcat.models.run import create_run
from wildcat.train.loop import train
from wildcat.viz import overlay_mask, side_by_side

given = [] if "ipykernel" in sys.modules else sys.argv[1:]
DATA = given[0] if given else "shapes"
OUT = Path(given[1] if given[1:] else tempfile.mkdtemp(prefix="wildcat-"))

# %% [markdown]
# ## Read
#
# The layout is recognised from its structure. Of data without splits, a fixed fifth is held out to measure on.

# %%
data = open_dataset(DATA)
train_samples, val_samples = data.training_split("train", "val")
print(f"{data.name}: {len(train_samples)} + {len(val_samples)} images; {', '.join(data.classes)}")

# %% [markdown]
# ## Train
#
# `tune="head"` computes the features of the ImageNet network once and trains only the layers after it, which takes
# seconds. `tune="all"` fine-tunes every layer, which is slow without a GPU. Larger images show smaller objects.

# %%
config = TrainConfig(tune="head", image_size=224, epochs=15)
run = create_run(OUT / "run", config, data)
train(run, data)

# %% [markdown]
# ## Measure
#
# Calibration first fits, on the training images, the probability from which a class counts as predicted. Then the model
# is evaluated on the held-out images: classification, and points and masks if the data has boxes and masks. These
# images also chose the best epoch, so the metrics are slightly optimistic.

# %%
model = wildcat.load(run.folder)
write_calibration(run.folder, model.classes, *calibrate(model, data))
model = wildcat.load(run.folder)

metrics = evaluate(model, data, "val")
print(f"labels  {metrics['classification']['map']:.1%} mean average precision")
if "pointing" in metrics:
    print(f"points  {metrics['pointing']['map']:.1%} mean average precision")
if "segmentation" in metrics:
    print(f"masks   {metrics['segmentation']['miou']:.1%} mean IoU")

# %% [markdown]
# ## Predict
#
# A prediction holds the classes, a point and boxes per class, heatmaps and a mask. A notebook displays it as an image
# if it is the last line of a cell.

# %%
images = [sample.path for sample in val_samples[:6]]
predictions = model.predict(images)
first = predictions[0]
for name in first.labels:
    x, y = first.points[name]
    print(f"{first.probabilities[name]:.0%} {name} at ({x:.0f}, {y:.0f}), {len(first.boxes[name])} boxes")


# %%
views = []  # per image: the image, the heatmap and point of the most likely class, the mask of all classes
for prediction in predictions:
    image = prediction.load_image()
    views += [image, prediction.plot(), overlay_mask(image, prediction.mask())]
sheet = side_by_side(views, columns=6, height=240)
sheet.save(OUT / "predictions.png")
sheet

# %% [markdown]
# ## Export
#
# Write COCO, YOLO, Pascal VOC or Label Studio annotations: open them in your labelling tool, or train a detector.

# %%
with ANNOTATION_FORMATS["coco"](OUT / "annotations", model.classes, model="your_own_folder") as writer:
    for prediction, path in zip(predictions, images, strict=True):
        writer.add(prediction, path.name)

print(f"Open {OUT / 'predictions.png'}; annotations are in {OUT / 'annotations'}.")
print(f"Try your own images: wildcat serve {run.folder}")
