"""Where the official files of a corpus can be fetched from without asking anybody, and what they are checked by.

Sizes and SHA-256 sums are those that TensorFlow Datasets publishes for these files (its url_checksums), and Hugging
Face for those of IWSLT'15 (the dataset_infos of mt_eng_vietnamese). MNIST comes from PyTorch's mirror, since its home
answers seldom. A file whose sum nobody publishes is not listed.

CelebA's files lie where a form stands in front of them, and CUB's captions too.
"""

from __future__ import annotations

from infra.download import Official

Sums = dict[str, tuple[int, str]]
"""By a file's name, its bytes and its SHA-256 sum."""


def _at(address: str, files: Sums) -> tuple[Official, ...]:
    return tuple(Official(name, f"{address}/{name}", size, sha256) for name, (size, sha256) in files.items())


MNIST = _at(
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    {
        "train-images-idx3-ubyte.gz": (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        "train-labels-idx1-ubyte.gz": (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        "t10k-images-idx3-ubyte.gz": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        "t10k-labels-idx1-ubyte.gz": (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    },
)
FASHION_MNIST = _at(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    {
        "train-images-idx3-ubyte.gz": (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        "train-labels-idx1-ubyte.gz": (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        "t10k-images-idx3-ubyte.gz": (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        "t10k-labels-idx1-ubyte.gz": (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    },
)
BINARIZED_MNIST = _at(
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist",
    {
        "binarized_mnist_train.amat": (78400000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
        "binarized_mnist_valid.amat": (15680000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
        "binarized_mnist_test.amat": (15680000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
    },
)
SVHN = _at(
    "http://ufldl.stanford.edu/housenumbers",
    {
        "train_32x32.mat": (182040794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        "test_32x32.mat": (64275384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    },
)
IWSLT15 = _at(
    "https://nlp.stanford.edu/projects/nmt/data/iwslt15.en-vi",
    {
        "train.en": (13603614, "c26dfeed74b6bf3752f5ca552f2412456f0de153f7c804df8717931fb3a5c78a"),
        "train.vi": (18074646, "707206edf2dc0280273952c7b70544ea8a1363aa69aaeb9d70514b888dc3067d"),
        "tst2012.en": (140250, "b8fbcd0d4199d41276421d1f7228298df67dd9e2c5c134c2ee8cdf3ec27801e2"),
        "tst2012.vi": (188396, "01004078b3f36b0c46e81b65fc6851230b3c823405c76d1d82ef3b786b512ff0"),
        "tst2013.en": (132264, "3860ce60bc5b85d96cc2d3d580cf1bc9d62440e939c1b964676d3607c4e8f1df"),
        "tst2013.vi": (183855, "29af16842808da2812b8fd4d47fc05d082ba870e60ab7755090ad04b380994cd"),
    },
)
BY_CORPUS = {
    "mnist": MNIST,
    "fashion-mnist": FASHION_MNIST,
    "mnist-split": MNIST,
    "mnist-split3": MNIST,
    "multimnist": MNIST,
    "binary-mnist": BINARIZED_MNIST + MNIST,
    "mnist-svhn": MNIST + SVHN,
    "mnist-digits": MNIST,
    "iwslt-en-vi": IWSLT15,
}


def addresses(corpus: str) -> tuple[Official, ...]:
    """The files that a corpus of that name is made from; none where no address is known that needs nobody's leave."""
    return BY_CORPUS.get(corpus, ())
