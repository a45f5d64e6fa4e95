//! depsync.toml as it is written: shapes for serde, and a reader that finds all faults.
//!
//! Every value is optional and keeps its place in the text; what it must be is `convert`'s matter.
//! Unknown keys and wrong types are faults; the faulty key is then taken out and the rest read
//! again, so that one fault never hides the next.

use std::{fmt, ops::Range, path::Path, path::PathBuf};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Flags, fault::Fault, rs_xml::Rs};

/// A value with its place in the text.
pub(super) type Value<T> = Option<Spanned<T>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) node: Value<String>,
    pub(super) listen: Value<String>,
    pub(super) advertise: Value<String>,
    pub(super) state_dir: Value<PathBuf>,
    pub(super) regions: Value<PathBuf>,
    pub(super) rs: Value<PathBuf>,
    pub(super) proxies: Vec<Spanned<String>>,
    pub(super) poll: Value<String>,
    pub(super) min_free: Value<String>,
    pub(super) maintenance: Maintenance,
    pub(super) tls: Tls,
    pub(super) bus: Bus,
    pub(super) region: Region,
    pub(super) bandwidth: Bandwidth,
    pub(super) limits: Limits,
    pub(super) feed: Vec<Feed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Maintenance {
    pub(super) schedule: Value<String>,
    pub(super) timezone: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) cert: Value<PathBuf>,
    pub(super) key: Value<PathBuf>,
    pub(super) ca: Value<PathBuf>,
    pub(super) client_ca: Value<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Bus {
    pub(super) nats: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Region {
    pub(super) name: Value<String>,
    pub(super) freshness: Value<String>,
    pub(super) stale: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Bandwidth {
    pub(super) total: Value<String>,
    pub(super) downloads: Value<String>,
    pub(super) replication: Value<String>,
    pub(super) per_client: Value<String>,
    pub(super) max_downloads: Value<u64>,
    pub(super) max_queue: Value<u64>,
    pub(super) network: Vec<Network>,
    pub(super) window: Vec<Window>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) connections_per_client: Value<u64>,
    pub(super) requests_per_client: Value<u64>,
    pub(super) requests_per_token: Value<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Network {
    pub(super) cidr: Value<String>,
    pub(super) region: Value<String>,
    pub(super) limit: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Window {
    pub(super) start: Value<String>,
    #[serde(rename = "for")]
    pub(super) lasts: Value<String>,
    pub(super) timezone: Value<String>,
    pub(super) total: Value<String>,
    pub(super) downloads: Value<String>,
    pub(super) replication: Value<String>,
    pub(super) per_client: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Feed {
    pub(super) name: Value<String>,
    pub(super) dir: Value<PathBuf>,
    pub(super) profile: Value<String>,
    pub(super) watch: Value<String>,
    pub(super) large_file: Value<String>,
    pub(super) metadata: Option<Kept>,
    pub(super) hooks: Value<PathBuf>,
    pub(super) keep: Retained,
    pub(super) history: Value<toml::Value>,
    pub(super) settle: Settle,
    pub(super) guard: Guard,
    pub(super) role: Value<String>,
    pub(super) upstream: Value<Several>,
    #[expect(clippy::struct_field_names, reason = "it is the key's name")]
    pub(super) upstream_feed: Value<String>,
    pub(super) token_file: Value<PathBuf>,
    pub(super) pin: Value<Several>,
    pub(super) client_cert: Value<PathBuf>,
    pub(super) client_key: Value<PathBuf>,
    pub(super) sign_with: Value<PathBuf>,
    pub(super) trusted_keys: Value<PathBuf>,
    pub(super) checkout: Value<String>,
    pub(super) releases: Value<u64>,
    pub(super) checkout_at: Value<String>,
    pub(super) drift: Value<String>,
    pub(super) link: bool,
    pub(super) paths: Vec<Spanned<String>>,
}

/// One text, or a list of them.
#[derive(Debug, Clone)]
pub(super) struct Several(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Several {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Several;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Several, E> {
                Ok(Several(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Several, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(Several(texts))
            }
        }
        from.deserialize_any(Texts)
    }
}

/// Names of what is kept besides the content.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Kept(pub(super) Vec<Spanned<String>>);

/// For how long the content of old versions stays.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retained {
    pub(super) age: Value<String>,
    pub(super) versions: Value<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settle {
    pub(super) quiet: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Guard {
    pub(super) max_delete_percent: Value<u64>,
    pub(super) min_delete_files: Value<u64>,
    pub(super) window: Value<String>,
    pub(super) off: bool,
}

/// What a text holds.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) file: File,
    pub(super) faults: Vec<Fault>,
    /// The keys that are left out of `file` for their faults, as in `feed[0].dir`: that they are
    /// then missing is no news.
    pub(super) unread: Vec<String>,
}

/// Reads the text; a key that cannot be read is left out and among the faults. What is not TOML at
/// all is an error, with all its faults.
pub(super) fn read(text: &str) -> Result<Read, Vec<Fault>> {
    let (mut table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| fault("", error)).collect());
    }
    let mut read = Read::default();
    loop {
        let error = match File::deserialize(toml::de::Deserializer::from(table.clone())) {
            Ok(file) => return Ok(Read { file, ..read }),
            Err(error) => error,
        };
        let Some(key) = error.span().and_then(|span| take_out(table.get_mut(), &span)) else {
            read.faults.push(fault("", &error));
            return Err(read.faults);
        };
        read.faults.push(fault(key.split("].").last().unwrap_or_default(), &error));
        read.unread.push(key);
    }
}

fn fault(key: &str, error: &toml::de::Error) -> Fault {
    let fault = match error.message().strip_prefix("unknown field") {
        Some(rest) => Fault::new("", format!("unknown key{rest}")),
        None => Fault::new(key, error.message()),
    };
    match error.span() {
        Some(span) => fault.at(span),
        None => fault,
    }
}

/// Removes the innermost key that an error points at, itself or by its value; says which it was.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let inner = table.iter_mut().find_map(|(key, value)| {
        let below = take_out_below(value.get_mut(), span)?;
        Some(format!("{}{below}", key.get_ref()))
    });
    if inner.is_some() {
        return inner;
    }
    let within = |whole: Range<usize>| whole.start <= span.start && span.end <= whole.end;
    let mut keys = table.iter();
    let (key, _) = keys.find(|(key, value)| within(key.span()) || within(value.span()))?;
    let key = key.clone();
    table.remove(&key);
    Some(key.into_inner().into_owned())
}

/// The same below a value; what is said begins with how it hangs together.
fn take_out_below(value: &mut DeValue<'_>, span: &Range<usize>) -> Option<String> {
    match value {
        DeValue::Table(table) => take_out(table, span).map(|key| format!(".{key}")),
        DeValue::Array(items) => items.iter_mut().enumerate().find_map(|(at, item)| {
            take_out_below(item.get_mut(), span).map(|below| format!("[{at}]{below}"))
        }),
        _ => None,
    }
}

impl File {
    /// Makes every path absolute: relative ones are meant from `base`.
    pub(super) fn relative_to(mut self, base: &Path) -> Self {
        let tls = &mut self.tls;
        let paths = [
            &mut self.state_dir,
            &mut self.regions,
            &mut self.rs,
            &mut tls.cert,
            &mut tls.key,
            &mut tls.ca,
            &mut tls.client_ca,
        ];
        let of_feeds = self.feed.iter_mut().flat_map(|feed| {
            [
                &mut feed.dir,
                &mut feed.token_file,
                &mut feed.client_cert,
                &mut feed.client_key,
                &mut feed.hooks,
                &mut feed.sign_with,
                &mut feed.trusted_keys,
            ]
        });
        for path in paths.into_iter().chain(of_feeds).flatten() {
            *path.get_mut() = base.join(path.get_ref());
        }
        self
    }
}

/// A value that stands nowhere in the text.
fn given<T>(value: Option<T>) -> Value<T> {
    value.map(|value| Spanned::new(0..0, value))
}

impl File {
    /// Adds what an `rs.xml` says and this file does not. The port is opened beyond loopback only
    /// where the command line consents to that.
    pub(super) fn completed_by(mut self, rs: Rs, insecure: bool) -> Self {
        let host = if insecure { "0.0.0.0" } else { "127.0.0.1" };
        let listen = rs.port.map(|port| format!("{host}:{port}"));
        let bandwidth = &mut self.bandwidth;
        self.listen = self.listen.or(given(listen));
        self.state_dir = self.state_dir.or(given(rs.state_dir));
        bandwidth.max_downloads = bandwidth.max_downloads.take().or(given(rs.max_downloads));
        let downloads = rs.downloads.map(|rate| rate.to_string());
        bandwidth.downloads = bandwidth.downloads.take().or(given(downloads));
        self
    }
}

impl From<Flags> for File {
    fn from(flags: Flags) -> Self {
        File {
            node: given(flags.node),
            listen: given(flags.listen),
            advertise: given(flags.advertise),
            state_dir: given(flags.state),
            regions: given(flags.regions),
            region: Region { name: given(flags.name), ..Region::default() },
            feed: vec![Feed {
                name: given(flags.feed),
                dir: given(Some(flags.dir)),
                profile: given(flags.profile),
                upstream: given(Some(flags.upstreams).filter(|list| !list.is_empty()).map(Several)),
                upstream_feed: given(flags.upstream_feed),
                token_file: given(flags.token_file),
                ..Feed::default()
            }],
            ..File::default()
        }
    }
}
