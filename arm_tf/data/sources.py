"""Published files: their addresses and checksums, and how they are found or downloaded."""

import dataclasses
import hashlib
import os
import pathlib
import socket
import tempfile
from collections.abc import Sequence

from absl import logging

from arm_tf.errors import DataError

_TIMEOUT = 60.0  # seconds without a byte before a download is given up


@dataclasses.dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
      address: where it is published.
      checksum: of the file, "sha256:..." or "md5:...".
      contents: checksum of what it, or the data set that it is part of, holds, for files that are
        also passed on repacked; or None.
      folder: where in the cache it goes.
    """

    address: str
    checksum: str
    contents: str | None = None
    folder: str = "datasets"


_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_MNIST_STATIC = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_FASHION_CONTENTS = "sha256:0fbbfcb392782b3b702472ead3688778e1509e8cf40f5c24d9d3303618b193ab"
_AMAT_CHECKSUMS = {
    "train": "sha256:ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "sha256:1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "sha256:e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}

SOURCES = {
    **{
        f"binarized_mnist_{split}.amat": Source(
            f"{_MNIST_STATIC}binarized_mnist_{split}.amat", checksum, contents=checksum
        )
        for split, checksum in _AMAT_CHECKSUMS.items()
    },
    "mnist.npz": Source(
        f"{_KERAS}mnist.npz",
        "sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        contents="sha256:5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96",
    ),
    "train-images-idx3-ubyte.gz": Source(
        f"{_KERAS}train-images-idx3-ubyte.gz",
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        contents=_FASHION_CONTENTS,
        folder="datasets/fashion-mnist",
    ),
    "t10k-images-idx3-ubyte.gz": Source(
        f"{_KERAS}t10k-images-idx3-ubyte.gz",
        "md5:bef4ecab320f06d8554ea6380940ec79",
        contents=_FASHION_CONTENTS,
        folder="datasets/fashion-mnist",
    ),
    "chardata.mat": Source(
        "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",
        "md5:21ecaf34373511aa7691cf2e0802aa3d",
    ),
}


def find(
    data_dir: pathlib.Path | None, sources: Sequence[str], forms: Sequence[Sequence[str]]
) -> list[pathlib.Path]:
    """Paths of the files of a data set, downloaded, or those that are in a folder.

    Args:
      data_dir: path, or None to download.
      sources: names in `SOURCES`.
      forms: lists of file names, one of them `sources`; the first whose files are all there counts.
    """
    if data_dir is None:
        return [_download(source) for source in sources]
    for names in forms:
        if all((data_dir / name).is_file() for name in names):
            return [data_dir / name for name in names]
    missing = next(source for source in sources if not (data_dir / source).is_file())
    raise DataError(
        f"{data_dir / missing}: no such file; put {SOURCES[missing].address} there, "
        "or use --dataset=glyphs, which needs no files"
    )


def _download(file_name: str) -> pathlib.Path:
    """Path of a published file in the Keras cache; what is there has the right checksum.

    The file is fetched into a folder of its own and moved into place once verified, so neither
    an interruption nor another process can leave or meet a partial one.
    """
    source = SOURCES[file_name]
    path = cache_folder() / source.folder / file_name
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        if path.is_file() and file_checksum(path, source.checksum) == source.checksum:
            return path
        import keras

        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".arm_tf_") as scratch:
            part = keras.utils.get_file(file_name, source.address, cache_subdir=scratch)
            found = file_checksum(part, source.checksum)
            if found != source.checksum:
                raise ValueError(f"expected checksum {source.checksum}, found {found}")
            os.replace(part, path)
    except Exception as error:  # get_file raises plain exceptions
        raise DataError(
            f"{source.address}: cannot be downloaded ({error}); put {file_name} into a folder "
            "and name the folder with --data_dir, or use --dataset=glyphs, which needs no files"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def cache_folder() -> pathlib.Path:
    """The folder that Keras keeps its files in."""
    return pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()


def is_published(path: pathlib.Path, found: str, published: str | None) -> bool:
    """Whether a checksum of a file or of its contents is the published one; warns if not."""
    if found != published:
        logging.warning(
            "%s: not the published file (%s, published %s); "
            "results are not comparable with published figures",
            path,
            found,
            published,
        )
    return found == published


def file_checksum(path: str | os.PathLike[str], like: str) -> str:
    """Checksum of a file in the form, and with the algorithm, of another one."""
    algorithm = like.partition(":")[0]
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"
