"""Public data sets: addresses, sizes, checksums, terms of use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wildcat.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Download:
    """A file of a data set."""

    urls: tuple[str, ...]  # of the same file, in the order to try
    folder: str  # where to unpack it, or to put it if it is no archive, relative to the target folder
    size: int | None = None  # bytes
    digest: str = ""  # published checksum as `algorithm:hex`

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.urls[0].rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A public data set and where to get it; paths are relative to the target folder."""

    name: str
    format: str
    description: str
    homepage: str
    licence: str  # the terms of use, in a sentence
    downloads: tuple[Download, ...]
    opens: str  # the path for `open_dataset`
    holds: tuple[str, ...]  # paths that exist if it is complete

    @property
    def by_hand(self) -> str:
        """How to get it with a browser, in a sentence."""
        files = ", ".join(download.urls[-1] for download in self.downloads)
        return f"Get {files} (see {self.homepage}) and unpack so that DIR/{self.holds[0]} appears."


def find_source(name: str) -> Source:
    """The public data set of that name, upper or lower case.

    Raises:
        ConfigError: unknown name.
        DataError: a packaged data set.
    """
    packaged = {"solar": "Type: pip install 'wildcat-vision[demo]'", "shapes": "It is generated at first use."}
    if name.lower() in packaged:
        raise DataError(f"{name} is packaged: there is nothing to fetch.", packaged[name.lower()])
    source = next((source for key, source in SOURCES.items() if key.lower() == name.lower()), None)
    if source is None:
        raise ConfigError(
            f"unknown data set {name!r}.",
            did_you_mean(name, SOURCES) or f"Choose one of: {', '.join(SOURCES)}.",
        )
    return source


def licence_of(name: str) -> str:
    """The terms of use of a public or packaged data set, in a sentence; "" of other data."""
    packaged = {"solar": "CC BY-NC-SA 4.0 (elpv-dataset).", "shapes": "Drawn by wildcat; free of rights."}
    source = next((source for key, source in SOURCES.items() if key.lower() == name.lower()), None)
    return source.licence if source else packaged.get(name.lower(), "")


def _voc(year: str, file: str, size: int, digest: str) -> Download:
    # Both hosts are the authors' at Oxford; torchvision moved from the second to the first.
    path = f"robots.ox.ac.uk/pascal/VOC/voc{year}/{file}"
    return Download((f"https://thor.{path}", f"http://host.{path}"), ".", size, digest)


def _coco(year: int, description: str, *files: tuple[str, int, str]) -> Source:
    """A year of MS COCO, whose files are given as path, bytes and SHA-256."""
    return Source(
        f"COCO{year}",
        "coco",
        description,
        "https://cocodataset.org/#download",
        f"The annotations are under Creative Commons Attribution 4.0. {_FLICKR} (cocodataset.org/#termsofuse).",
        tuple(
            Download((f"http://images.cocodataset.org/{path}",), "coco", size, f"sha256:{digest}")
            for path, size, digest in files
        ),
        "coco",
        (f"coco/annotations/instances_train{year}.json", f"coco/train{year}", f"coco/val{year}"),
    )


_FLICKR = "The photographs are from Flickr, and their use must respect the Flickr terms of use"

# Checksums of VOC: torchvision's voc.py; their sizes, and sizes and checksums of COCO: tensorflow-datasets,
# url_checksums/{voc,coco}.txt. 15-Scene: dm_nevis and pyvision_data name the same one. MIT67: only vipy names one.
_VOC2007 = Source(
    "VOC2007",
    "voc",
    "9,963 photographs, 20 classes, boxes; 632 with masks",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    f"{_FLICKR} (Database Rights on the page of VOC).",
    (
        _voc("2007", "VOCtrainval_06-Nov-2007.tar", 460_032_000, "md5:c52e279531787c972589f7e41ab4ae64"),
        _voc("2007", "VOCtest_06-Nov-2007.tar", 451_020_800, "md5:b6e924de25625d8de591ea690078ad9f"),
    ),
    "VOCdevkit/VOC2007",
    tuple(f"VOCdevkit/VOC2007/{path}" for path in ("ImageSets/Main/test.txt", "ImageSets/Main/trainval.txt")),
)
_VOC2012 = replace(
    _VOC2007,
    name="VOC2012",
    description="11,540 photographs, 20 classes, boxes; 2,913 with masks",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    downloads=(_voc("2012", "VOCtrainval_11-May-2012.tar", 1_999_639_040, "md5:6cd6e144f989b92b3379bac3b3de84fd"),),
    opens="VOCdevkit/VOC2012",
    holds=("VOCdevkit/VOC2012/ImageSets/Main/trainval.txt", "VOCdevkit/VOC2012/ImageSets/Action/trainval.txt"),
)
_COCO2014 = _coco(
    2014,
    "82,783 photographs to train, 40,504 to validate, 80 classes, boxes",
    (
        "annotations/annotations_trainval2014.zip",
        252_872_794,
        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    ("zips/val2014.zip", 6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    ("zips/train2014.zip", 13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
)
_COCO2017 = _coco(
    2017,
    "118,287 photographs to train, 5,000 to validate, 80 classes, boxes",
    (
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    ("zips/val2017.zip", 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    ("zips/train2017.zip", 19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
)
_MIT67 = Source(
    "MIT67",
    "indoor",
    "5,360 + 1,340 photographs of 67 classes of indoor scenes",
    "https://web.mit.edu/torralba/www/indoor.html",
    'The page of its authors says: "The images provided here are for research purposes only."',
    (
        Download(
            ("http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar",),
            "MIT67",
            digest="sha1:0b252516e746ba428b96af408d2e8162d9b08ac5",
        ),
        Download(("http://web.mit.edu/torralba/www/TrainImages.txt",), "MIT67"),
        Download(("http://web.mit.edu/torralba/www/TestImages.txt",), "MIT67"),
    ),
    "MIT67",
    ("MIT67/Images", "MIT67/TrainImages.txt", "MIT67/TestImages.txt"),
)
_SCENES_URL = "http://www-cvr.ai.uiuc.edu/ponce_grp/data/scene_categories/scene_categories.zip"
_SCENES = Source(
    "15-Scene",
    "scenes",
    "4,485 grey photographs of 15 classes of scenes",
    "https://web.archive.org/web/20070829035029/http://www-cvr.ai.uiuc.edu/ponce_grp/data/",
    "Its authors state no licence: take it as for research, and cite Lazebnik, Schmid and Ponce (CVPR 2006).",
    (
        Download(
            (_SCENES_URL, f"https://web.archive.org/web/20070829035029/{_SCENES_URL}"),
            "15-Scene",
            digest="md5:58828019197b2ad0a7efb472e7a85c2a",
        ),
    ),
    "15-Scene",
    ("15-Scene/CALsuburb", "15-Scene/store"),
)

_VOC2012_ACTION = replace(
    _VOC2012,
    name="VOC2012-Action",
    format="voc-action",
    description="photographs of people, 10 actions (--format voc-action: the devkit has objects too)",
)

# VOC 2012 is train and val only: the labels of its test split are not public.
SOURCES = {s.name: s for s in (_VOC2007, _VOC2012, _VOC2012_ACTION, _COCO2014, _COCO2017, _MIT67, _SCENES)}
