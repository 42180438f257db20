//! Dates, months and money in the reader's locale (ICU4X), and language tags.
//!
//! Nothing here fails. An invalid tag gives `None`. A value that cannot be formatted is written as in the document
//! (`2026-06-14`, `49.99 CAD`), which a person can still read.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{Datelike, NaiveDate};
use fixed_decimal::Decimal;
use icu::calendar::{Date, Gregorian};
use icu::datetime::FixedCalendarDateTimeFormatter;
use icu::datetime::fieldsets::{YM, YMD};
use icu::decimal::DecimalFormatter;
use icu::locale::extensions::unicode::Value;
use icu::locale::preferences::extensions::unicode::keywords::CurrencyType;
use icu::locale::{LanguageIdentifier, LocaleDirectionality, LocaleExpander};
use icu_experimental::dimension::currency::formatter::CurrencyFormatter;
use icu_experimental::dimension::currency::options::CurrencyFormatterOptions;

use offramp_domain::calendar::YearMonth;
use offramp_domain::money::Amount;

/// The longest language tag, in bytes. Longer than every real one.
const TAG_BYTES_MAX: usize = 35;

/// The most currencies whose formatters one locale caches. Further ones get a new formatter for each amount.
const CURRENCIES_MAX: usize = 32;

/// How a reader reads: language, writing direction, formats.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The language tag of the email.
    pub(crate) language: String,
    pub(crate) formats: Formats,
    direction: Direction,
}

impl Reader {
    pub(crate) fn new(tag: &LanguageIdentifier) -> Self {
        Self { language: tag.to_string(), formats: Formats::new(tag), direction: Direction::of(tag) }
    }

    /// The writing direction as HTML names it.
    pub(crate) fn direction(&self) -> &'static str {
        self.direction.as_str()
    }
}

/// A writing direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    LeftToRight,
    RightToLeft,
}

impl Direction {
    pub(crate) fn of(tag: &LanguageIdentifier) -> Self {
        if LocaleDirectionality::new_extended().is_right_to_left(tag) { Self::RightToLeft } else { Self::LeftToRight }
    }

    /// As HTML writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::LeftToRight => "ltr",
            Self::RightToLeft => "rtl",
        }
    }
}

/// A tag and its more general forms: `zh-Hant-TW`, `zh-Hant`, `zh`. A region implies a script: `zh-TW` is `zh-Hant-TW`.
pub(crate) fn ancestry(tag: &LanguageIdentifier) -> Vec<LanguageIdentifier> {
    let mut full = tag.clone();
    if tag.script.is_none() {
        LocaleExpander::new_extended().maximize(&mut full);
    }
    let language = |script, region| LanguageIdentifier { script, region, ..tag.clone() };
    let mut tags = vec![tag.clone(), language(full.script, tag.region), language(full.script, None)];
    if tag.script.is_none() {
        tags.push(language(None, tag.region));
    }
    tags.push(language(None, None));
    let mut seen = Vec::new();
    tags.retain(|tag| {
        !seen.contains(tag) && {
            seen.push(tag.clone());
            true
        }
    });
    tags
}

/// Formats dates, months and money for one locale.
#[derive(Debug)]
pub struct Formats {
    locale: LanguageIdentifier,
    date: Option<FixedCalendarDateTimeFormatter<Gregorian, YMD>>,
    month: Option<FixedCalendarDateTimeFormatter<Gregorian, YM>>,
    money: RwLock<HashMap<String, Arc<Money>>>,
}

/// How one locale writes one currency; `None` where ICU does not support it.
type Money = Option<MoneyFormat>;

#[derive(Debug)]
struct MoneyFormat {
    formatter: CurrencyFormatter<DecimalFormatter>,
    /// The number of digits after the decimal point.
    fraction_digits: usize,
}

impl Formats {
    /// Loads the formats of `locale`, or those of its language where ICU does not know the region.
    #[must_use]
    pub fn new(locale: &LanguageIdentifier) -> Self {
        let icu_locale = icu::locale::Locale::from(locale.clone());
        Self {
            date: FixedCalendarDateTimeFormatter::try_new((&icu_locale).into(), YMD::long()).ok(),
            month: FixedCalendarDateTimeFormatter::try_new((&icu_locale).into(), YM::long()).ok(),
            money: RwLock::default(),
            locale: locale.clone(),
        }
    }

    /// `14 juin 2026`, `June 14, 2026`, `14 de junio de 2026`. With ordinary spaces, so that a search for a date finds it.
    #[must_use]
    pub fn date(&self, date: NaiveDate) -> String {
        let formatted = gregorian(date).zip(self.date.as_ref()).map(|(day, format)| format.format(&day).to_string());
        let text = formatted.unwrap_or_else(|| date.to_string());
        // French uses an ordinal for the first day of a month only: "1er juin". CLDR does not.
        match text.strip_prefix("1 ") {
            Some(rest) if self.locale.language.as_str() == "fr" => format!("1er {rest}"),
            _ => text,
        }
    }

    /// `juin 2026`, `June 2026`, `junio de 2026`.
    #[must_use]
    pub fn month(&self, month: YearMonth) -> String {
        let formatted =
            gregorian(month.first_day()).zip(self.month.as_ref()).map(|(day, format)| format.format(&day).to_string());
        formatted.unwrap_or_else(|| month.to_string())
    }

    /// `49,99 $` for Canadian dollars in `fr-CA`, `$49.99` in `en-CA`. A foreign currency names its country: `49,99 $ US`,
    /// `US$49.99`. Has as many digits after the decimal point as the currency, or as the amount needs.
    #[must_use]
    pub fn money(&self, amount: &Amount) -> String {
        let (value, currency) = (amount.value.as_str(), amount.currency.as_str());
        let fraction = value.split_once('.').map_or("", |(_, fraction)| fraction.trim_end_matches('0'));
        match (Decimal::try_from_str(value), &*self.money_formatter(currency)) {
            // ICU rounds to the currency's digits. An amount that would change is written as in the document.
            (Ok(mut decimal), Some(money)) if fraction.len() <= money.fraction_digits => {
                decimal.trim_start();
                self.as_in_cldr(money.formatter.format_fixed_decimal(&decimal).to_string())
            }
            _ => format!("{value}\u{a0}{currency}"),
        }
    }

    /// Corrects what ICU4X 2.4 formats otherwise than CLDR says: it lacks the separators that French-speaking Switzerland
    /// uses in amounts, and currencies whose Spanish symbol is their code.
    fn as_in_cldr(&self, money: String) -> String {
        let region = self.locale.region.map(|region| region.to_string());
        match (self.locale.language.as_str(), region.as_deref()) {
            ("fr", Some("CH")) => money.replace(',', ".").replace(['\'', '’'], "\u{202f}"),
            ("es", None | Some("ES")) => with_code(&money, "CA$", "CAD"),
            ("es", _) => with_code(&with_code(&money, "CA$", "CAD"), "US$", "USD"),
            _ => money,
        }
    }

    fn money_formatter(&self, currency: &str) -> Arc<Money> {
        // A poisoned lock is harmless: entries are only ever added.
        if let Some(known) = self.money.read().unwrap_or_else(PoisonError::into_inner).get(currency) {
            return Arc::clone(known);
        }
        let formatter = Arc::new(self.new_money_formatter(currency));
        let mut known = self.money.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < CURRENCIES_MAX {
            known.insert(currency.to_owned(), Arc::clone(&formatter));
        }
        formatter
    }

    fn new_money_formatter(&self, currency: &str) -> Money {
        let currency = CurrencyType::try_from(Value::try_from_str(currency).ok()?).ok()?;
        let locale = icu::locale::Locale::from(self.locale.clone());
        let options = CurrencyFormatterOptions::default();
        let formatter = CurrencyFormatter::try_new_symbol((&locale).into(), currency, options).ok()?;
        let nothing = formatter.format_fixed_decimal(&Decimal::from(0)).to_string();
        let fraction_digits = nothing.chars().filter(|c| c.is_numeric()).count().saturating_sub(1);
        Some(MoneyFormat { formatter, fraction_digits })
    }
}

/// An amount with the code of the currency instead of a symbol. A code is not written next to a digit.
fn with_code(money: &str, symbol: &str, code: &str) -> String {
    match money.strip_prefix(symbol) {
        Some(number) => format!("{code}\u{a0}{}", number.trim_start_matches('\u{a0}')),
        None => money.replace(symbol, code),
    }
}

/// Parses a language tag in the forms that documents use: BCP 47 (`fr-CA`) or POSIX (`fr_CA.UTF-8`). Variants and extensions
/// are dropped, because no email depends on them.
#[must_use]
pub fn parse_tag(text: &str) -> Option<LanguageIdentifier> {
    let tag = text.trim().split(['.', '@']).next().unwrap_or_default();
    if tag.is_empty() || tag.len() > TAG_BYTES_MAX {
        return None;
    }
    let mut id = icu::locale::Locale::try_from_str(&tag.replace('_', "-")).ok()?.id;
    id.variants.clear();
    (!id.language.is_unknown()).then_some(id)
}

fn gregorian(date: NaiveDate) -> Option<Date<Gregorian>> {
    let (month, day) = (u8::try_from(date.month()).ok()?, u8::try_from(date.day()).ok()?);
    Date::try_new_gregorian(date.year(), month, day).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(tag: &str) -> Formats {
        Formats::new(&parse_tag(tag).expect("a tag"))
    }

    fn date(text: &str) -> NaiveDate {
        text.parse().expect("a date")
    }

    #[track_caller]
    fn check_money(tag: &str, value: &str, currency: &str, expected: &str) {
        let amount =
            Amount { value: value.try_into().expect("a value"), currency: currency.try_into().expect("a currency") };
        assert_eq!(formats(tag).money(&amount), expected, "{tag} {value} {currency}");
    }

    #[test]
    fn dates_follow_the_locale() {
        for (tag, expected) in [
            ("fr", "14 juin 2026"),
            ("fr-CA", "14 juin 2026"),
            ("en", "June 14, 2026"),
            ("en-CA", "June 14, 2026"),
            ("en-GB", "14 June 2026"),
            ("es", "14 de junio de 2026"),
            ("es-MX", "14 de junio de 2026"),
            ("fr-ZZ", "14 juin 2026"),
        ] {
            assert_eq!(formats(tag).date(date("2026-06-14")), expected, "{tag}");
        }
    }

    #[test]
    fn only_french_uses_an_ordinal_for_the_first_of_the_month() {
        assert_eq!(formats("fr-CA").date(date("2026-06-01")), "1er juin 2026");
        assert_eq!(formats("fr-CA").date(date("2026-06-11")), "11 juin 2026");
        assert_eq!(formats("es").date(date("2026-06-01")), "1 de junio de 2026");
        assert_eq!(formats("en").date(date("2026-06-01")), "June 1, 2026");
    }

    #[test]
    fn months_include_the_year() {
        let june = YearMonth::of(date("2026-06-14"));
        assert_eq!(formats("fr-CA").month(june), "juin 2026");
        assert_eq!(formats("en-CA").month(june), "June 2026");
        assert_eq!(formats("es").month(june), "junio de 2026");
    }

    #[test]
    fn foreign_currencies_name_their_country() {
        check_money("fr-CA", "49.99", "CAD", "49,99\u{a0}$");
        check_money("fr-CA", "49.99", "USD", "49,99\u{a0}$\u{a0}US");
        check_money("fr-CA", "49.99", "EUR", "49,99\u{a0}€");
        check_money("fr", "49.99", "CAD", "49,99\u{a0}$CA");
        check_money("fr", "1234.5", "EUR", "1\u{202f}234,50\u{a0}€");
        check_money("fr-CA", "1234.5", "CAD", "1\u{a0}234,50\u{a0}$");
        check_money("en-CA", "49.99", "CAD", "$49.99");
        check_money("en-CA", "49.99", "USD", "US$49.99");
        check_money("en-US", "49.99", "USD", "$49.99");
        check_money("en-US", "49.99", "CAD", "CA$49.99");
        check_money("en", "49.99", "CAD", "CA$49.99");
        check_money("es-MX", "49.99", "MXN", "$49.99");
        check_money("es", "49.99", "EUR", "49,99\u{a0}€");
        check_money("es", "49.99", "CAD", "49,99\u{a0}CAD");
        check_money("es-MX", "1049.9", "USD", "USD\u{a0}1,049.90");
        check_money("es-ES", "1049.9", "EUR", "1049,90\u{a0}€");
        check_money("fr-CH", "1049.9", "CHF", "1\u{202f}049.90\u{a0}CHF");
        check_money("fr-CH", "1049.9", "EUR", "1\u{202f}049.90\u{a0}€");
        check_money("es-US", "49.99", "USD", "$49.99");
        check_money("en-CA", "49", "CAD", "$49.00");
        check_money("fr-CA", "49.9", "CAD", "49,90\u{a0}$");
        check_money("en-CA", "5000", "JPY", "JP¥5,000");
        check_money("en-CA", "12.345", "KWD", "KWD\u{a0}12.345");
        check_money("fr-CA", "0049.9900", "CAD", "49,99\u{a0}$");
        check_money("fr-CA", "0.50", "CAD", "0,50\u{a0}$");
        check_money("fr-CA", "12", "XQQ", "12,00\u{a0}XQQ");
    }

    #[test]
    fn money_is_never_rounded() {
        check_money("fr-CA", "49.999", "CAD", "49.999\u{a0}CAD");
        check_money("en-CA", "50.5", "JPY", "50.5\u{a0}JPY");
    }

    #[test]
    fn more_general_tags_keep_the_script() {
        for (tag, expected) in [
            ("fr-CA", "fr-CA fr-Latn-CA fr-Latn fr"),
            ("zh-TW", "zh-TW zh-Hant-TW zh-Hant zh"),
            ("zh-Hant-TW", "zh-Hant-TW zh-Hant zh"),
            ("zh", "zh zh-Hans"),
            ("sr-Latn-RS", "sr-Latn-RS sr-Latn sr"),
        ] {
            let tags: Vec<String> = ancestry(&parse_tag(tag).unwrap()).iter().map(ToString::to_string).collect();
            assert_eq!(tags.join(" "), expected, "{tag}");
        }
    }

    #[test]
    fn languages_have_a_direction() {
        for (tag, expected) in [("ar", "rtl"), ("he-IL", "rtl"), ("fa", "rtl"), ("fr-CA", "ltr"), ("az-Arab", "rtl")] {
            assert_eq!(Reader::new(&parse_tag(tag).unwrap()).direction(), expected, "{tag}");
        }
    }

    #[test]
    fn tags_are_read_in_every_form_that_documents_use() {
        for (text, expected) in [
            ("fr-CA", Some("fr-CA")),
            ("fr_CA", Some("fr-CA")),
            ("FR-ca", Some("fr-CA")),
            (" fr_CA.UTF-8 ", Some("fr-CA")),
            ("ca@valencia", Some("ca")),
            ("zh-hant-tw", Some("zh-Hant-TW")),
            ("en-CA-u-nu-arab", Some("en-CA")),
            ("es-419", Some("es-419")),
            ("", None),
            ("und", None),
            ("-", None),
            ("français", None),
            ("fr CA", None),
            ("../../etc/passwd", None),
            ("x\r\nBcc: a@b", None),
        ] {
            assert_eq!(parse_tag(text).map(|tag| tag.to_string()).as_deref(), expected, "{text:?}");
        }
        assert!(parse_tag(&"fr-".repeat(100_000)).is_none());
    }
}
