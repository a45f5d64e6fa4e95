//! The reader of `nodes-list.txt`: where the rsync recipe copies to, a `user@host:path` each.
//!
//! The recipe's loop splits at any white space, so this does too. What is no such place (a daemon's
//! module, a local path) is kept with its line, to be told.

/// Places in one list; the recipe copies to one after the other.
const MAX_PLACES: usize = 10_000;

/// What a list says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NodesList {
    /// Where it copies to.
    pub(super) places: Vec<Place>,
    /// Lines that are no place on a host, with their number.
    pub(super) others: Vec<(usize, String)>,
}

/// A directory on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// In the file, counted from 1.
    pub(super) line: usize,
    /// As whom it is written; absent: as whoever runs the recipe.
    pub(super) user: Option<String>,
    /// A name or an address.
    pub(super) host: String,
    /// There; may begin with `~`.
    pub(super) path: String,
}

/// Reads the text of a list.
///
/// # Errors
/// When it names no place at all, or more than any recipe would copy to.
pub(super) fn parse(text: &str) -> Result<NodesList, String> {
    let mut list = NodesList::default();
    for (at, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        for word in line.split_whitespace() {
            if list.places.len() + list.others.len() == MAX_PLACES {
                return Err(format!("it has more than {MAX_PLACES} entries"));
            }
            match place(word, at + 1) {
                Some(place) => list.places.push(place),
                None => list.others.push((at + 1, word.to_owned())),
            }
        }
    }
    if list.places.is_empty() {
        return Err("it names no place as in deploy@10.0.0.5:/srv/apps".to_owned());
    }
    Ok(list)
}

fn place(word: &str, line: usize) -> Option<Place> {
    let (user, rest) = match word.split_once('@') {
        Some((user, rest)) if !user.contains([':', '/']) => (Some(user), rest),
        _ => (None, word),
    };
    let (host, path) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once("]:")?,
        None => rest.split_once(':')?,
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    let sound = !host.is_empty() && host.chars().all(is_host);
    // A second colon is a daemon's module; a URL begins with a scheme.
    if !sound || path.is_empty() || path.starts_with(':') || path.starts_with("//") {
        return None;
    }
    if user.is_some_and(str::is_empty) || word.chars().any(char::is_control) {
        return None;
    }
    Some(Place {
        line,
        user: user.map(ToOwned::to_owned),
        host: host.to_owned(),
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_the_rest_is_told() {
        let list = parse(
            "ubuntu@192.168.30.1:~/as/worker1/repository/deployment/server\n\n# two\n\
             eu.example:/srv/apps/ deploy@[2001:db8::5]:/srv  rsync://x/y host::module /local # far\n",
        )
        .unwrap();
        let place = |line, user: &str, host: &str, path: &str| Place {
            line,
            user: Some(user.to_owned()).filter(|user| !user.is_empty()),
            host: host.into(),
            path: path.into(),
        };
        let expected = [
            place(1, "ubuntu", "192.168.30.1", "~/as/worker1/repository/deployment/server"),
            place(4, "", "eu.example", "/srv/apps/"),
            place(4, "deploy", "2001:db8::5", "/srv"),
        ];
        assert_eq!(list.places, expected);
        let others: Vec<_> = list.others.iter().map(|(line, word)| (*line, &word[..])).collect();
        assert_eq!(others, [(4, "rsync://x/y"), (4, "host::module"), (4, "/local")]);
    }

    #[test]
    fn a_list_of_nothing_is_none() {
        for text in ["", "# only this", "/local", "@:x", "a@b", "host:"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"h:/x ".repeat(10_001)).unwrap_err().contains("more than"));
    }
}
