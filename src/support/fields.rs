//! Reading a document field by field, whatever is wrong with the others.

use bson::{Bson, DateTime as Instant, RawBsonRef, RawDocument};
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use serde::de::DeserializeOwned;

use crate::store::documents::{OwnDate, Stored, kind};

/// The fields of a document, and the first problem that was met.
pub(super) struct Fields<'a> {
    raw: &'a RawDocument,
    /// `subscriptions sub-1`
    of: String,
    problem: Option<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(of: String, raw: &'a RawDocument) -> Self {
        Self { raw, of, problem: None }
    }

    /// The first field that could not be read.
    pub(super) fn problem(self) -> Option<String> {
        self.problem
    }

    /// A field, such as `billing.next_on`. Null counts as absent.
    pub(super) fn read<T: DeserializeOwned>(&mut self, path: &str) -> Option<T> {
        let value = self.value(path)?;
        self.read_value(path, value)
    }

    /// A field that has a meaning where it is absent.
    pub(super) fn read_or<T: DeserializeOwned>(&mut self, path: &str, absent: T) -> Option<T> {
        match self.value(path) {
            Some(value) => self.read_value(path, value),
            None => Some(absent),
        }
    }

    /// A date that was written as text.
    pub(super) fn date(&mut self, path: &str) -> Option<NaiveDate> {
        self.read::<OwnDate>(path).map(|OwnDate(day)| day)
    }

    /// The readable elements of a list.
    pub(super) fn list<T: DeserializeOwned>(&mut self, path: &str) -> Vec<T> {
        let elements = match self.value(path) {
            Some(RawBsonRef::Array(elements)) => elements,
            Some(other) => {
                let found = Bson::try_from(other).ok().as_ref().map_or("something else", kind);
                self.report(format!("{}: {path}: expected a list, found {found}", self.of));
                return Vec::new();
            }
            None => return Vec::new(),
        };
        let elements = elements.into_iter().enumerate();
        let read = |(at, element): (usize, Result<RawBsonRef<'_>, _>)| {
            self.read_value(&format!("{path}[{at}]"), element.ok()?)
        };
        elements.filter_map(read).collect()
    }

    fn value(&self, path: &str) -> Option<RawBsonRef<'a>> {
        let mut names = path.split('.');
        let first = self.raw.get(names.next()?).ok()??;
        let value = names.try_fold(first, |value, name| value.as_document()?.get(name).ok()?)?;
        (!matches!(value, RawBsonRef::Null | RawBsonRef::Undefined)).then_some(value)
    }

    fn read_value<T: DeserializeOwned>(&mut self, path: &str, value: RawBsonRef<'_>) -> Option<T> {
        match Stored::<T>::from(value).read(&self.of, path) {
            Ok(value) => Some(value),
            Err(malformed) => {
                self.report(malformed.to_string());
                None
            }
        }
    }

    fn report(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }
}

/// An instant, of a year of four digits: others cannot be shown in a time zone.
pub(super) fn utc(instant: Instant) -> Option<DateTime<Utc>> {
    let time = instant.to_chrono();
    (0..=9999).contains(&time.year()).then_some(time)
}
