//! Prices: what the operator says that a size or a class of slots costs, from the configuration. Shown,
//! and never reckoned with.

use std::collections::BTreeMap;

use berth_api::rest::{Price, PricePeriod, SlotClass};
use berth_controller_core::slot::is_class_name;
use serde::Deserialize;

/// Most digits of an amount on each side of its point.
const MAX_DIGITS: usize = 12;

/// `price = { amount = "0.045", currency = "EUR", per = "hour" }`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PriceSettings {
    amount: String,
    currency: String,
    per: PricePeriod,
}

/// One `[slot_classes.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlotClassSettings {
    price: PriceSettings,
}

/// What of a price is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PriceError {
    /// Not a number that everybody reads alike.
    #[error("`amount` must be a decimal number as text, such as \"0.045\"")]
    Amount,
    /// Not a currency's code.
    #[error("`currency` must be three capital letters of ISO 4217, such as \"EUR\"")]
    Currency,
}

/// Why the configuration's classes of slots are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClassPricesError {
    /// A name that no slot's class can have.
    #[error("[slot_classes] names {class:?}, which is no class of slots")]
    Class {
        /// Which.
        class: String,
    },
    /// Its price.
    #[error("the price of [slot_classes.{class:?}]")]
    Price {
        /// Of which class.
        class: String,
        #[source]
        source: PriceError,
    },
}

impl TryFrom<PriceSettings> for Price {
    type Error = PriceError;

    fn try_from(settings: PriceSettings) -> Result<Self, PriceError> {
        if !is_amount(&settings.amount) {
            return Err(PriceError::Amount);
        }
        let letters = settings.currency.bytes();
        if letters.len() != 3 || !settings.currency.bytes().all(|c| c.is_ascii_uppercase()) {
            return Err(PriceError::Currency);
        }
        Ok(Self {
            amount: settings.amount,
            currency: settings.currency,
            per: settings.per,
        })
    }
}

/// Digits, and a point with digits after it or none: no sign, no exponent.
fn is_amount(text: &str) -> bool {
    let digits = |part: &str| {
        (1..=MAX_DIGITS).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit())
    };
    match text.split_once('.') {
        None => digits(text),
        Some((whole, fraction)) => digits(whole) && digits(fraction),
    }
}

/// What classes of slots cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClassPrices(BTreeMap<String, Price>);

impl ClassPrices {
    pub(crate) fn new(
        settings: BTreeMap<String, SlotClassSettings>,
    ) -> Result<Self, ClassPricesError> {
        let mut prices = BTreeMap::new();
        for (class, settings) in settings {
            if !is_class_name(&class) {
                return Err(ClassPricesError::Class { class });
            }
            match settings.price.try_into() {
                Ok(price) => prices.insert(class, price),
                Err(source) => return Err(ClassPricesError::Price { class, source }),
            };
        }
        Ok(Self(prices))
    }

    /// The same class with its price.
    pub(crate) fn on(&self, class: SlotClass) -> SlotClass {
        SlotClass {
            price: self.0.get(&class.class).cloned(),
            ..class
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_a_plain_decimal_number() {
        for good in ["0", "1", "0.045", "12.50", "100000000000", "0.000000000001"] {
            assert!(is_amount(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1,5",
            "1.2.3",
            " 1",
            "0x1",
            "٣",
            "NaN",
            "1000000000000",
            "0.0000000000001",
        ] {
            assert!(!is_amount(bad), "{bad}");
        }
    }

    #[test]
    fn prices_that_cannot_be_are_refused_at_the_start() {
        let read = |text: &str| {
            ClassPrices::new(toml::from_str(text).unwrap()).map_err(|error| match error {
                ClassPricesError::Class { class } => class,
                ClassPricesError::Price { class, source } => format!("{class}: {source}"),
            })
        };
        let price = |amount: &str, currency: &str| {
            format!(
                "[\"gpu.h100\"]\nprice = {{ amount = \"{amount}\", currency = \"{currency}\", per = \"hour\" }}\n"
            )
        };
        read(&price("2.40", "EUR")).unwrap();
        let amount = read(&price("2,40", "EUR")).unwrap_err();
        assert!(amount.starts_with("gpu.h100: `amount`"), "{amount}");
        for currency in ["eur", "EURO", "€", ""] {
            let refused = read(&price("1", currency)).unwrap_err();
            assert!(refused.starts_with("gpu.h100: `currency`"), "{refused}");
        }
        let class = price("1", "EUR").replace("gpu.h100", "GPU");
        assert_eq!(read(&class).unwrap_err(), "GPU");
        let week = price("1", "EUR").replace("hour", "week");
        toml::from_str::<BTreeMap<String, SlotClassSettings>>(&week).unwrap_err();
    }
}
