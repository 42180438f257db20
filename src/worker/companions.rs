//! Published events that wait for the emails of the same change, so that one write marks all entries of a document.
//!
//! Waiting is an optimisation: an event that waited too long, or found no room here, is marked alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::DocumentId;
use crate::store::outbox::delivery::Mark;

/// How long an event waits.
const PATIENCE: Duration = Duration::from_millis(500);
/// For how many documents events wait, and for how many documents it is remembered that their emails came first.
const DOCUMENTS_MAX: usize = 1_024;

/// The marks of events that wait for an email's mark.
#[derive(Default)]
pub(super) struct Companions {
    waiting: HashMap<DocumentId, Vec<Mark>>,
    /// Until when they wait, oldest first. A document in it may have been marked meanwhile.
    deadlines: VecDeque<(Instant, DocumentId)>,
    /// Documents whose emails were marked before their events arrived: these events need not wait. The queue has them in order
    /// of arrival.
    early: HashSet<DocumentId>,
    early_order: VecDeque<DocumentId>,
}

impl Companions {
    /// Keeps the mark of an event. Returns it if its email has already been marked, or if there is no room.
    pub(super) fn park(&mut self, mark: Mark, now: Instant) -> Option<Mark> {
        let document = mark.document.clone();
        if self.early.contains(&document) {
            return Some(mark);
        }
        if self.deadlines.len() >= 4 * DOCUMENTS_MAX {
            self.deadlines.retain(|(_, document)| self.waiting.contains_key(document));
        }
        if self.waiting.len() >= DOCUMENTS_MAX {
            return Some(mark);
        }
        self.deadlines.push_back((now + PATIENCE, document.clone()));
        self.waiting.entry(document).or_default().push(mark);
        None
    }

    /// Takes the events that waited for an email of this document.
    pub(super) fn take(&mut self, email: &Mark) -> Vec<Mark> {
        let document = email.document.clone();
        if let Some(events) = self.waiting.remove(&document) {
            return events;
        }
        if self.early.insert(document.clone()) {
            self.early_order.push_back(document);
        }
        if self.early_order.len() > DOCUMENTS_MAX
            && let Some(oldest) = self.early_order.pop_front()
        {
            self.early.remove(&oldest);
        }
        Vec::new()
    }

    /// Takes the events that waited too long.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<Mark> {
        let mut overdue = Vec::new();
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let document = self.deadlines.pop_front().map(|(_, document)| document);
            overdue.extend(document.and_then(|document| self.waiting.remove(&document)).unwrap_or_default());
        }
        overdue
    }

    pub(super) fn take_all(&mut self) -> Vec<Mark> {
        self.deadlines.clear();
        self.waiting.drain().flat_map(|(_, marks)| marks).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::store::outbox::delivery::DeliveryResult;
    use crate::store::outbox::entry::Kind;

    fn mark(document_id: &str, kind: Kind) -> Mark {
        Mark {
            document: DocumentId::Subscription(document_id.try_into().unwrap()),
            entry_id: format!("{}-of-{document_id}", kind.as_str()),
            kind,
            holder: String::new(),
            attempts: 0,
            result: DeliveryResult::Sent { at: clock::now() },
            announcement: None,
        }
    }

    fn documents(marks: &[Mark]) -> Vec<&str> {
        marks.iter().map(|mark| mark.document.as_str()).collect()
    }

    #[test]
    fn events_wait_for_the_email_of_their_document() {
        let (mut companions, now) = (Companions::default(), Instant::now());
        assert!(companions.park(mark("a", Kind::Event), now).is_none());
        assert!(companions.park(mark("b", Kind::Event), now).is_none());
        assert_eq!(documents(&companions.take(&mark("a", Kind::Email))), ["a"]);
        assert!(companions.take_overdue(now).is_empty());
        assert_eq!(documents(&companions.take_overdue(now + PATIENCE)), ["b"], "not a, which was marked");
        assert!(companions.take_all().is_empty());
    }

    #[test]
    fn events_that_arrive_after_their_email_do_not_wait() {
        let mut companions = Companions::default();
        assert!(companions.take(&mark("a", Kind::Email)).is_empty());
        assert!(companions.park(mark("a", Kind::Event), Instant::now()).is_some());
    }

    #[test]
    fn events_without_room_do_not_wait() {
        let (mut companions, now) = (Companions::default(), Instant::now());
        for index in 0..DOCUMENTS_MAX {
            assert!(companions.park(mark(&index.to_string(), Kind::Event), now).is_none());
        }
        assert!(companions.park(mark("one too many", Kind::Event), now).is_some());
    }
}
