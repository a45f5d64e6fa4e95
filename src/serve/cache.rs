//! A map bounded by bytes, for what is read often and can be made again.
//!
//! Eviction is CLOCK: whoever was read since the hand last passed stays one round longer, so reading
//! takes the lock shared and changes only a flag.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// The map. Values are cheap to clone (`Arc`, `Bytes`).
pub(super) struct Cache<K, V> {
    limit: usize,
    inner: RwLock<Inner<K, V>>,
}

struct Inner<K, V> {
    map: HashMap<K, Slot<V>>,
    /// Keys in the order in which the hand meets them.
    clock: VecDeque<K>,
    bytes: usize,
}

struct Slot<V> {
    value: V,
    bytes: usize,
    read: AtomicBool,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// Holds at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        let inner = Inner { map: HashMap::new(), clock: VecDeque::new(), bytes: 0 };
        Cache { limit, inner: RwLock::new(inner) }
    }

    /// The value, and a note that it is in use.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let inner = self.inner.read().expect("no holder panics");
        let slot = inner.map.get(key)?;
        slot.read.store(true, Relaxed);
        Some(slot.value.clone())
    }

    /// Keeps a value that takes `bytes`; one larger than an eighth of the cache is not kept.
    pub(super) fn insert(&self, key: K, value: V, bytes: usize) {
        if bytes > self.limit / 8 {
            return;
        }
        let mut inner = self.inner.write().expect("no holder panics");
        let slot = Slot { value, bytes, read: AtomicBool::new(false) };
        inner.bytes += bytes;
        match inner.map.insert(key.clone(), slot) {
            Some(old) => inner.bytes -= old.bytes,
            None => inner.clock.push_back(key),
        }
        while inner.bytes > self.limit {
            inner.turn();
        }
    }
}

impl<K: Hash + Eq, V> Inner<K, V> {
    /// The hand meets the next key: it goes, or comes round again.
    fn turn(&mut self) {
        let Some(key) = self.clock.pop_front() else { return };
        if self.map.get(&key).is_some_and(|slot| slot.read.swap(false, Relaxed)) {
            self.clock.push_back(key);
        } else if let Some(slot) = self.map.remove(&key) {
            self.bytes -= slot.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bytes_and_keeps_what_is_read() {
        let cache = Cache::new(1000);
        cache.insert(0, 0, 100);
        for n in 1..200 {
            assert_eq!(cache.get(&0), Some(0), "{n}");
            cache.insert(n, n, 100);
            assert!(cache.inner.read().unwrap().bytes <= 1000);
        }
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.get(&199), Some(199));
        assert_eq!(cache.inner.read().unwrap().clock.len(), 10);
    }

    #[test]
    fn a_value_that_would_empty_it_is_not_kept() {
        let cache = Cache::new(1000);
        cache.insert("big", 1, 126);
        assert_eq!(cache.get(&"big"), None);
        cache.insert("small", 1, 125);
        cache.insert("small", 2, 10);
        assert_eq!(cache.get(&"small"), Some(2));
        assert_eq!(cache.inner.read().unwrap().bytes, 10);
    }
}
