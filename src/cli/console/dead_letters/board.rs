//! A copy of the dead letters, to look at.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use offramp::advice;
use offramp::amqp::{Broker, DeadLetter, DeadLetters, DeadLettersError, Topology};
use offramp::clock;
use serde_json::Value;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;
use uuid::Uuid;

/// The largest number of dead letters in the copy, and the size of their bodies and headers together, in bytes. Of the others, the page
/// says how many there are.
const LETTERS_MAX: usize = 10_000;
const CONTENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The age from which a copy is made anew if their number has changed.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// The age from which a copy is made anew although their number is the same: they may be others.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// How long a visitor waits for a newer copy.
const PATIENCE: Duration = Duration::from_millis(250);

/// The copy, and how it is made.
pub struct Board {
    broker: Broker,
    topology: Topology,
    copy: Mutex<Option<Arc<Snapshot>>>,
    /// One copy is made at a time.
    copying: AsyncMutex<()>,
    /// The number of copies and changes that run.
    holds: AtomicUsize,
}

/// While it exists, dead letters are held, and their queue has fewer messages than dead letters.
pub struct Hold<'a>(&'a AtomicUsize);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The dead letters as they were at one time.
pub struct Snapshot {
    pub at: DateTime<Utc>,
    /// Oldest first.
    pub letters: Vec<Copied>,
    /// The number of those that the copy has no room for.
    pub others: u64,
    /// By reason and error pattern, the largest group first.
    pub groups: Vec<Group>,
}

pub struct Copied {
    pub letter: DeadLetter,
    /// Absent if there was no room.
    pub content: Option<Content>,
}

pub struct Content {
    pub headers: Value,
    pub body: Vec<u8>,
}

/// Dead letters with the same cause.
pub struct Group {
    /// Names the group in links.
    pub key: String,
    pub reason: String,
    pub error: String,
    /// Their places in [`Snapshot::letters`].
    pub members: Vec<usize>,
    pub oldest: Option<DateTime<Utc>>,
    pub newest: Option<DateTime<Utc>>,
}

impl Snapshot {
    fn new(at: DateTime<Utc>, letters: Vec<Copied>, others: u64) -> Self {
        let mut members: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (place, Copied { letter, .. }) in letters.iter().enumerate() {
            members.entry((&letter.reason, &letter.error_pattern)).or_default().push(place);
        }
        let group = |((reason, error), members): ((&str, &str), Vec<usize>)| {
            let times = || members.iter().filter_map(|&place| letters[place].letter.died_at);
            let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{reason}\n{error}").as_bytes());
            Group {
                key: key.simple().to_string(),
                reason: reason.to_owned(),
                error: error.to_owned(),
                oldest: times().min(),
                newest: times().max(),
                members,
            }
        };
        let mut groups: Vec<Group> = members.into_iter().map(group).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.members.len()));
        Self { at, letters, others, groups }
    }

    pub fn group(&self, key: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.key == key)
    }

    pub fn find(&self, handle: &str) -> Option<&Copied> {
        self.letters.iter().find(|copied| copied.letter.handle == handle)
    }

    /// The dead letters of a group.
    pub fn of_group(&self, group: &Group) -> impl Iterator<Item = &Copied> {
        group.members.iter().map(|&place| &self.letters[place])
    }

    /// How many there are of each id of these dead letters: one, except for identical ones.
    pub fn ids<'a>(letters: impl Iterator<Item = &'a Copied>) -> HashMap<Uuid, u64> {
        let mut ids = HashMap::new();
        for Copied { letter, .. } in letters {
            *ids.entry(letter.id).or_default() += 1;
        }
        ids
    }
}

impl Board {
    pub fn new(broker: Broker, topology: Topology) -> Self {
        Self { broker, topology, copy: Mutex::new(None), copying: AsyncMutex::new(()), holds: AtomicUsize::new(0) }
    }

    /// Says that dead letters are held, until it is dropped.
    pub fn hold(&self) -> Hold<'_> {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold(&self.holds)
    }

    /// Whether this console holds dead letters, so that their queue cannot be counted.
    pub fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Snapshot>>> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newest(&self) -> Option<Arc<Snapshot>> {
        self.lock().clone()
    }

    /// The copy to show. `in_queue` is the number of dead letters now, if it is known: a copy is made anew if it differs, or after a
    /// minute. Then a visitor waits for a moment; if it takes longer, they see the older copy, which says how old it is.
    pub async fn look(self: &Arc<Self>, in_queue: Option<u32>) -> Result<Arc<Snapshot>, DeadLettersError> {
        let Some(copy) = self.newest() else { return self.copy_now().await };
        let is_older_than = |age: Duration| (clock::now() - copy.at).to_std().is_ok_and(|own| own > age);
        let size = copy.letters.len() as u64 + copy.others;
        let differs = in_queue.is_some_and(|count| u64::from(count) != size);
        let is_wanted = is_older_than(FRESH_FOR) && differs || is_older_than(STALE_AFTER) && in_queue.is_some();
        // While one is being made, or waits for another operator, a second attempt would only queue behind it.
        if is_wanted && !self.is_held() {
            let board = Arc::clone(self);
            let copying = tokio::spawn(async move { board.copy_now().await });
            return match timeout(PATIENCE, copying).await {
                Ok(Ok(Ok(newer))) => Ok(newer),
                Ok(Ok(Err(error))) => {
                    let error = advice::append(&error, advice::dead_letters_error(&error));
                    tracing::debug!(error, "console: cannot copy the dead letters; the page shows an older copy");
                    Ok(copy)
                }
                Ok(Err(_)) | Err(_) => Ok(copy),
            };
        }
        Ok(copy)
    }

    /// Makes a copy, or waits for the one that is being made.
    pub async fn copy_now(&self) -> Result<Arc<Snapshot>, DeadLettersError> {
        let asked_at = clock::now();
        let _one_at_a_time = self.copying.lock().await;
        if let Some(copy) = self.newest().filter(|copy| copy.at > asked_at) {
            return Ok(copy);
        }
        let _held = self.hold();
        let letters = DeadLetters::open(&self.broker, &self.topology).await?;
        let copied = copy(&letters).await;
        letters.close().await;
        let copied = Arc::new(copied?);
        *self.lock() = Some(Arc::clone(&copied));
        Ok(copied)
    }
}

async fn copy(letters: &DeadLetters) -> Result<Snapshot, DeadLettersError> {
    // What dies from now on may be missing.
    let at = clock::now();
    let mut scan = letters.scan().await?;
    let (mut copied, mut others, mut bytes) = (Vec::new(), 0, 0);
    while let Some(held) = scan.next().await? {
        if copied.len() == LETTERS_MAX {
            // A scan holds what it has seen, so the rest is counted only.
            others = scan.total().saturating_sub(LETTERS_MAX as u64);
            break;
        }
        let size = held.size();
        let has_room = bytes + size <= CONTENT_BYTES_MAX;
        let content = has_room.then(|| Content { headers: held.headers(), body: held.body().to_vec() });
        bytes += if has_room { size } else { 0 };
        copied.push(Copied { letter: held.letter, content });
    }
    scan.finish().await?;
    Ok(Snapshot::new(at, copied, others))
}
