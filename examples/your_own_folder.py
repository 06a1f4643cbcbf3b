# %% [markdown]
# # Your own folder of tagged images
#
# You have images and know *what* is in each. From these tags alone we train a network that also says *where*, look at
# what it found, and write it down as annotations to correct or to train a detector with.
#
#     python examples/your_own_folder.py [DATA] [OUT]
#
# DATA is one folder per class, a CSV with the columns `image,labels`, or any other layout of `wildcat datasets`.
# Without it, 500 synthetic images of shapes are made and used. In a notebook, write your folder into the next cell.

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
# The layout is recognised from its structure. Where the data has no split of its own, a part is held out to measure on.

# %%
data = open_dataset(DATA)
train_samples, val_samples = data.training_split("train", "val")
print(f"{data.name}: {len(train_samples)} + {len(val_samples)} images; {', '.join(data.classes)}")

# %% [markdown]
# ## Train
#
# `tune="head"` runs the ImageNet network over each image once and then trains only the layers after it, which takes
# seconds. `tune="all"` fine-tunes every layer: better, and slow without a GPU. Larger images find smaller things.

# %%
config = TrainConfig(tune="head", image_size=224, epochs=15)
run = create_run(OUT / "run", config, data)
train(run, data)

# %% [markdown]
# ## Measure
#
# On the images held out (they chose the best epoch, which flatters it a little): the tags, and points and masks too
# where the data has boxes and masks to compare with. Before that, calibration learns from the training images how
# likely a class must be to be drawn in a mask.

# %%
model = wildcat.load(run.folder)
write_calibration(run.folder, model.classes, *calibrate(model, data))
model = wildcat.load(run.folder)

figures = evaluate(model, data, "val")
print(f"tags    {figures['classification']['map']:.1%} mean average precision")
if "pointing" in figures:
    print(f"points  {figures['pointing']['map']:.1%} mean average precision")
if "segmentation" in figures:
    print(f"masks   {figures['segmentation']['miou']:.1%} mean IoU")

# %% [markdown]
# ## Look
#
# A prediction knows its classes, a point and boxes for each, heatmaps and a mask. A notebook shows it as an image when
# it is the last line of a cell.

# %%
images = [sample.path for sample in val_samples[:6]]
predictions = model.predict(images)
first = predictions[0]
for name in first.labels:
    x, y = first.points[name]
    print(f"{first.probabilities[name]:.0%} {name} at ({x:.0f}, {y:.0f}), {len(first.boxes[name])} boxes")


# %%
views = []  # of each image: itself, the heatmap and point of its likeliest class, the mask of all its classes
for prediction in predictions:
    image = prediction.load_image()
    views += [image, prediction.plot(), overlay_mask(image, prediction.mask())]
sheet = side_by_side(views, columns=6, height=240)
sheet.save(OUT / "seen.png")
sheet

# %% [markdown]
# ## Use
#
# As COCO, YOLO, Pascal VOC or Label Studio annotations: open them in your labelling tool, or train a detector.

# %%
with ANNOTATION_FORMATS["coco"](OUT / "annotations", model.classes, model="your_own_folder") as writer:
    for prediction, path in zip(predictions, images, strict=True):
        writer.add(prediction, path.name)

print(f"Look at {OUT / 'seen.png'}; annotations are in {OUT / 'annotations'}.")
print(f"Try your own images: wildcat serve {run.folder}")
