//! The one binary frame: a head as it is announced, and the commit's pack behind it where that is small.
//!
//! u32 length (big endian), JSON, pack. What the lengths say is checked before anything is believed.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{BadFrame, MAX_FRAME, encode};
use crate::model::{FeedName, Head, Oid};

/// The largest pack that travels inside an announcement; a larger one is fetched over HTTP.
pub const MAX_INLINE_PACK: usize = 64 * 1024;

/// A head as it is announced, without the pack that may follow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// The feed's name at the upstream.
    pub feed: FeedName,
    /// The new head.
    #[serde(flatten)]
    pub head: Head,
    /// The commit before it: the pack inside is only of use to who has that.
    #[serde(default)]
    pub parent: Option<Oid>,
    /// The pack's size in bytes; 0 when it is not inside.
    #[serde(default)]
    pub size: u64,
    /// The commit as it is signed, where the feed is: who believes that key knows by it, before
    /// anything is fetched, that the head is the primary's word. Relays hand it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Announce {
    /// The binary frame, with the pack behind the JSON; a pack over 64 KiB is left out.
    ///
    /// # Panics
    /// Never: the JSON is short.
    pub fn encode(&self, pack: Option<&[u8]>) -> Bytes {
        let pack = pack.filter(|pack| pack.len() <= MAX_INLINE_PACK).unwrap_or_default();
        let json = encode(&Announce { size: pack.len() as u64, ..self.clone() });
        let length = u32::try_from(json.len()).expect("an announcement's JSON is short");
        let mut frame = BytesMut::with_capacity(4 + json.len() + pack.len());
        frame.put_u32(length);
        frame.put_slice(json.as_bytes());
        frame.put_slice(pack);
        frame.freeze()
    }

    /// Reads a binary frame: the announcement, and the pack where it is inside.
    ///
    /// # Errors
    /// When it is too long, cut short, or not JSON where it should be.
    pub fn decode(mut frame: Bytes) -> Result<(Self, Option<Bytes>), BadFrame> {
        if frame.len() > MAX_FRAME {
            return Err(BadFrame::TooLong(frame.len()));
        }
        let length = frame.first_chunk::<4>().ok_or(BadFrame::Truncated)?;
        let length = u32::from_be_bytes(*length) as usize;
        let _ = frame.split_to(4);
        if length > frame.len() {
            return Err(BadFrame::Truncated);
        }
        let announce: Announce = serde_json::from_slice(&frame.split_to(length))?;
        if announce.size != frame.len() as u64 {
            return Err(BadFrame::Truncated);
        }
        Ok((announce, Some(frame).filter(|pack| !pack.is_empty())))
    }
}
