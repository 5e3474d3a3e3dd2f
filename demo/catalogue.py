"""What the shop sells: records, what plays them and what keeps them clean. Prices in whole roubles."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Product:
    """One article. `price`: whole roubles."""

    product_id: str
    name: str
    category: str
    brand: str
    price: int

    def fields(self, shop_url: str) -> dict[str, Any]:
        """The product as events of the e-commerce spec carry it."""
        return {
            "product_id": self.product_id,
            "sku": f"SKU-{self.product_id}",
            "name": self.name,
            "category": self.category,
            "brand": self.brand,
            "price": self.price,
            "url": f"{shop_url}/p/{self.product_id}",
            "image_url": f"{shop_url}/i/{self.product_id}.jpg",
        }


_SHELVES: dict[str, list[tuple[str, str, int]]] = {
    "vinyl": [
        ("Slow Trains", "Halden Quartet", 2_900),
        ("Nine Lanterns", "Mira Volk", 3_400),
        ("Salt and Copper", "The Ferrymen", 2_600),
        ("Low Winter Sun", "Oda Lind", 3_900),
        ("Paper Satellites", "Kilo Delta", 2_400),
        ("Live at the Depot", "Halden Quartet", 4_800),
        ("Orchard Street", "June & the Tides", 2_700),
        ("Monochrome", "Anton Reyl", 3_100),
        ("Harbour Lights", "The Ferrymen", 2_300),
        ("Second Skin", "Mira Volk", 3_600),
        ("Field Recordings III", "Tundra Sound", 1_900),
        ("Northern Suites", "Chamber Eleven", 5_400),
        ("Blue Kiosk", "Kilo Delta", 2_200),
        ("Years of Rain", "Oda Lind", 3_300),
        ("Cassette Summer", "June & the Tides", 1_700),
        ("Complete Etudes (4 LP)", "Chamber Eleven", 9_800),
    ],
    "turntables": [
        ("Belt One", "Rondell", 18_900),
        ("Belt Two Walnut", "Rondell", 27_500),
        ("Direct 500", "Akkord", 34_900),
        ("Portable Case", "Akkord", 9_900),
    ],
    "headphones": [
        ("Studio Closed 40", "Orfey", 7_900),
        ("Open Air 80", "Orfey", 12_400),
        ("On-Ear Light", "Membrane", 3_200),
        ("Wireless Two", "Membrane", 8_600),
        ("Monitor Pro", "Akkord", 19_900),
    ],
    "accessories": [
        ("Cartridge Red", "Rondell", 6_300),
        ("Spare Stylus", "Rondell", 2_800),
        ("Slipmat Cork", "Grooveline", 1_200),
        ("Phono Preamp", "Akkord", 5_900),
        ("Shelf Crate", "Grooveline", 3_500),
        ("Bluetooth Receiver", "Membrane", 2_900),
    ],
    "care": [
        ("Carbon Brush", "Grooveline", 890),
        ("Cleaning Fluid 250 ml", "Grooveline", 740),
        ("Inner Sleeves (50)", "Grooveline", 980),
        ("Outer Sleeves (50)", "Grooveline", 1_150),
        ("Stylus Gel", "Rondell", 1_350),
    ],
}


@dataclass(frozen=True)
class Coupon:
    """What the till takes off for a code: a percentage, or an amount in whole roubles."""

    percent: int = 0
    amount: int = 0

    def discount(self, subtotal: int) -> int:
        return min(subtotal, subtotal * self.percent // 100 + self.amount)


# The codes that the shop has made known for its letters (rules/offers.yml).
COUPONS = {
    "HELLO5": Coupon(percent=5),
    "POPUP10": Coupon(percent=10),
    "FOOTER5": Coupon(percent=5),
    "THANKS300": Coupon(amount=300),
    "CART5": Coupon(percent=5),
    "BACK7": Coupon(percent=7),
}
_WORD = re.compile(r"[A-Z0-9]+")


def coupon_in(text: str) -> str | None:
    """The first of the shop's codes in a message's text."""
    return next((word for word in _WORD.findall(text) if word in COUPONS), None)


class Catalogue:
    """All products, by category and by id."""

    def __init__(self) -> None:
        self.products: list[Product] = []
        for category, shelf in _SHELVES.items():
            for number, (name, brand, price) in enumerate(shelf, start=1):
                self.products.append(Product(f"{category[:3]}-{number:02d}", name, category, brand, price))
        self.by_id = {product.product_id: product for product in self.products}
        self.categories = list(_SHELVES)

    def in_category(self, category: str) -> list[Product]:
        return [product for product in self.products if product.category == category]

    def pick(self, taste: dict[str, float], chance: random.Random) -> Product:
        """A product as somebody of this taste (weight by category) would look at it; cheap ones come up more often."""
        category = chance.choices(list(taste), weights=list(taste.values()))[0]
        shelf = self.in_category(category)
        return chance.choices(shelf, weights=[1 / product.price**0.5 for product in shelf])[0]
