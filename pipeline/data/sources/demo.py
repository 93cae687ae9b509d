"""The built-in dataset: a catalogue and its shoppers, drawn from a seed.

What is planted, so that nobody need guess:

* Every product has seen attributes (product type with its department, brand, style, use) and two unseen ones: an *appeal* (a
  vector that no word reveals) and a popularity (log-normal).
* The title names the product type always, and brand, style and use each with a probability below 1; an edition word is noise.
  So titles reveal a part of what shoppers care about.
* A shopper has tastes over departments, brands, styles and uses, and a taste vector for the unseen appeal. Text can learn the
  first, IDs can learn both where there is data enough, text and IDs together have the advantage of both.
* Sequence: after a product, products of its department and one fixed *companion* type (seen), and products of near appeal
  (unseen), become likelier. Only the last product weighs.

Choices are a softmax over the sum of these; a shopper buys a product once. No adapter's own assumption (low rank, sparsity, a
polynomial of the spectrum, whiteness) is planted.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from pipeline.data import Source
from pipeline.data.sources import Raw, read_parquet_pair, write_parquet_pair

DEPARTMENTS = {
    "Kitchen": [
        "Frying Pan",
        "Saucepan",
        "Chef Knife",
        "Cutting Board",
        "Mixing Bowl",
        "Kettle",
        "Teapot",
        "Baking Tray",
    ],
    "Garden": [
        "Pruning Shears",
        "Watering Can",
        "Plant Pot",
        "Garden Hose",
        "Seed Tray",
        "Rake",
        "Trowel",
        "Bird Feeder",
    ],
    "Office": [
        "Notebook",
        "Fountain Pen",
        "Desk Lamp",
        "Stapler",
        "Desk Organizer",
        "Whiteboard",
        "Label Maker",
        "Calendar",
    ],
    "Outdoor": ["Tent", "Sleeping Bag", "Headlamp", "Camp Stove", "Water Bottle", "Hiking Pole", "Backpack", "Hammock"],
    "Toys": ["Puzzle", "Building Blocks", "Board Game", "Toy Train", "Stuffed Bear", "Kite", "Card Game", "Dollhouse"],
    "Music": [
        "Guitar Strings",
        "Metronome",
        "Music Stand",
        "Ukulele",
        "Drum Sticks",
        "Harmonica",
        "Tuner",
        "Guitar Capo",
    ],
    "Pets": [
        "Dog Leash",
        "Cat Tree",
        "Pet Bed",
        "Chew Toy",
        "Food Bowl",
        "Aquarium Filter",
        "Bird Cage",
        "Scratching Post",
    ],
    "Beauty": ["Face Cream", "Hair Brush", "Lip Balm", "Shampoo", "Nail Polish", "Bath Salt", "Hand Soap", "Perfume"],
}
BRANDS = [
    "Alder",
    "Arvo",
    "Bexley",
    "Brightwell",
    "Calder",
    "Corvo",
    "Dunmore",
    "Eastlake",
    "Fennick",
    "Galway",
    "Harrow",
    "Ironbark",
    "Juniper",
    "Kestrel",
    "Larkin",
    "Marlow",
    "Northway",
    "Oakham",
    "Pinecrest",
    "Quill",
    "Redfern",
    "Sorrel",
    "Tamsin",
    "Umber",
    "Verity",
    "Westbrook",
    "Yarrow",
    "Zephyr",
]
STYLES = [
    "Stainless Steel",
    "Bamboo",
    "Ceramic",
    "Matte Black",
    "Recycled",
    "Vintage",
    "Minimalist",
    "Floral",
    "Leather",
    "Glow in the Dark",
    "Rose Gold",
    "Cotton",
    "Carbon Fiber",
    "Pastel",
    "Rustic",
    "Transparent",
]
USES = [
    "for Beginners",
    "for Kids",
    "for Travel",
    "for Small Spaces",
    "for Professionals",
    "for Gifts",
    "for Winter",
    "for Everyday Use",
    "for Left-Handers",
    "for Couples",
    "for Parties",
    "for Seniors",
]
EDITIONS = [
    "Classic",
    "Deluxe",
    "Plus",
    "2-Pack",
    "Set of 4",
    "Mini",
    "Large",
    "New Edition",
    "Refill",
    "Compact",
    "Pro",
    "Original",
]

TYPES = [(department, name) for department, names in DEPARTMENTS.items() for name in names]
DEPARTMENT = np.array([list(DEPARTMENTS).index(department) for department, _ in TYPES])
APPEAL_WIDTH = 8
NAMED = {"brand": 0.6, "style": 0.7, "use": 0.6, "edition": 0.5}  # how often a title says it
DECIDEDNESS = 1.4  # inverse temperature of the choices: higher, and they are easier to foresee
LENGTHS = (6, 18)  # interactions of a shopper before any filter
DAY = 86_400  # s
START = 1_356_998_400  # 2013-01-01, s


class Demo(Source):
    """The size of the catalogue and its seed."""

    kind: Literal["demo"]
    seed: int = Field(0, ge=0)
    items: int = Field(1000, ge=50, description="products in the catalogue")
    users: int = Field(2000, ge=50, description="shoppers")

    @property
    def known_items(self) -> int:
        return self.items


def fetch(source: Demo, mirror: str | None, directory: Path) -> None:
    """Generate the dataset into `directory`."""
    write_parquet_pair(*generate(source.seed, source.items, source.users), directory)


def read(source: Demo, directory: Path) -> Raw:
    """Read back what `fetch` wrote."""
    return read_parquet_pair(directory)


def generate(seed: int, n_items: int, n_users: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Interactions (user_id, item_id, timestamp in s) and items (item_id, title, brand, categories).

    The same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(len(TYPES), size=n_items)
    brand = rng.integers(len(BRANDS), size=n_items)
    style = rng.integers(len(STYLES), size=n_items)
    use = rng.integers(len(USES), size=n_items)
    appeal = rng.normal(size=(n_items, APPEAL_WIDTH)) / APPEAL_WIDTH**0.5
    popularity = rng.normal(size=n_items) * 0.8
    titles = _titles(rng, kind, brand, style, use)

    def tastes(values: np.ndarray, size: int, strength: float) -> np.ndarray:
        """Each shopper's liking of every item by one attribute: a sparse liking of its values, (U, N)."""
        liking = rng.gamma(0.3, size=(n_users, size))
        return strength * (liking / liking.std())[:, values]

    liking = (
        tastes(DEPARTMENT[kind], len(DEPARTMENTS), 0.8)
        + tastes(brand, len(BRANDS), 0.5)
        + tastes(style, len(STYLES), 0.7)
        + tastes(use, len(USES), 0.5)
        + 1.2 * rng.normal(size=(n_users, APPEAL_WIDTH)) @ appeal.T
        + popularity
    )  # (U, N)
    companion = rng.permutation(len(TYPES))
    follows = (
        1.0 * (DEPARTMENT[kind][:, None] == DEPARTMENT[kind][None, :])
        + 2.5 * (companion[kind][:, None] == kind[None, :])
        + 2.0 * appeal @ appeal.T
    )  # (N, N): row = what was bought last

    steps = rng.integers(LENGTHS[0], LENGTHS[1] + 1, size=n_users)
    users = np.arange(n_users)
    bought = np.zeros((n_users, n_items), dtype=bool)
    last: np.ndarray | None = None
    rows = []
    day = rng.integers(0, 300, size=n_users)
    for step in range(LENGTHS[1]):
        scores = DECIDEDNESS * (liking + (0 if last is None else follows[last]))
        scores = np.where(bought, -np.inf, scores) + rng.gumbel(size=scores.shape)
        last = scores.argmax(1)
        bought[users, last] = True
        day = day + rng.integers(0, 15, size=n_users)
        going = users[steps > step]
        rows.append(np.stack([going, last[going], START + DAY * day[going]]))
    user, item, timestamp = np.concatenate(rows, axis=1)
    interactions = pl.DataFrame(
        {
            "user_id": [f"user{u:05d}" for u in user],
            "item_id": [f"item{i:05d}" for i in item],
            "timestamp": timestamp,
        },
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
    )
    items = pl.DataFrame(
        {
            "item_id": [f"item{i:05d}" for i in range(n_items)],
            "title": titles,
            "brand": [BRANDS[i] for i in brand],
            "categories": [", ".join(TYPES[i]) for i in kind],
        }
    )
    return interactions, items


def _titles(rng: np.random.Generator, kind: np.ndarray, brand: np.ndarray, style: np.ndarray, use: np.ndarray) -> list[str]:
    """Brand, style, product, edition, use: each but the product is sometimes left unsaid."""
    said = {name: rng.random(len(kind)) < share for name, share in NAMED.items()}
    edition = rng.integers(len(EDITIONS), size=len(kind))
    return [
        " ".join(
            word
            for word, is_said in (
                (BRANDS[brand[i]], said["brand"][i]),
                (STYLES[style[i]], said["style"][i]),
                (TYPES[kind[i]][1], True),
                (EDITIONS[edition[i]], said["edition"][i]),
                (USES[use[i]], said["use"][i]),
            )
            if is_said
        )
        for i in range(len(kind))
    ]
