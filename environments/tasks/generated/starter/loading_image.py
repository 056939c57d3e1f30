"""Read-only: inputs of an image task. A row is a square grey image, pixel by pixel."""

import numpy as np


def inputs(size=None, edges=False, blur=False):
    """Inputs of the training images and of the images to predict, `[images, columns]`.

    size: shrink images to so many pixels a side, by averaging blocks.
    edges: add how much neighbouring pixels differ, to the right and downwards.
    blur: add every pixel's average over its 3 x 3 surroundings.

    Where an image is to be denoised, the first column is the pixel in the middle, whose true value is the target.
    """
    parts = (np.loadtxt(f"data/{name}.csv", delimiter=",", skiprows=1, ndmin=2) for name in ("train", "test"))
    return tuple(_describe(part, size, edges, blur) for part in parts)


def _describe(pixels, size, edges, blur):
    side = int(np.sqrt(pixels.shape[1]))
    images = pixels.reshape(-1, side, side)
    columns = [images[:, side // 2, side // 2][:, None]] if side % 2 else []
    if size and size < side:
        blocks = np.arange(side) * size // side
        averages = np.eye(size)[blocks] / np.bincount(blocks)[blocks][:, None]
        columns.append(np.einsum("nij,ia,jb->nab", images, averages, averages))
    else:
        columns.append(images)
    if blur:
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
        columns.append(sum(padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)) / 9)
    if edges:
        columns += [np.abs(np.diff(images, axis=axis)) for axis in (1, 2)]
    return np.hstack([column.reshape(len(pixels), -1) for column in columns])
