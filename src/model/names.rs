//! Which names of a deployment directory belong to the feed, and which are left out.
//!
//! What is ours or git's, names of uploads and editors, the server's own files by profile, and the
//! user's `.depsyncignore` in gitignore syntax (whose `!` brings back what the profile leaves out).
//! The primary scans by these rules, a region tells drift from the server's own files by them, an
//! upload is refused by them. They look at names only, never at a file; whatever lies in a folder
//! that is left out is left out.

use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt, path::Path, str::FromStr};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};
use serde::{Deserialize, Serialize};

use super::RelPath;

/// The user's own rules, in the feed's root; itself a file of the feed.
pub const IGNORE_FILE: &[u8] = b".depsyncignore";
/// In the feed's root: changes are gathered, not published, while it is there.
pub const HOLD_FILE: &[u8] = b".depsync-hold";
/// How our own temporary files in users' directories begin.
pub const TEMP_PREFIX: &[u8] = b".depsync-tmp-";
/// The largest `.depsyncignore`, in bytes; the patterns are compiled into one automaton.
const MAX_IGNORE: usize = 256 * 1024;

/// Names that uploading programs and editors use until the file is whole: `scp` and browsers,
/// `WinSCP`, vim, emacs, office programs, NFS, and rsync's `.name.XXXXXX`, which is told apart below.
const UNFINISHED: &str = "
*.part
*.filepart
*.partial
*.tmp
*.temp
*.crdownload
*.download
*.opdownload
*.aria2
*.uploading
*.swp
*.swo
*.swx
.*.sw[a-z]
4913
*~
.#*
\\#*#
.~lock.*#
~$*
.nfs[0-9a-f][0-9a-f][0-9a-f][0-9a-f]*
.goutputstream-*
.fuse_hidden*
";

/// The feed is Tomcat's base directory or its `webapps`: in the latter every folder is exploded.
const TOMCAT: &str = "
/*/
!/bin/
!/common/
!/conf/
!/lib/
!/shared/
!/webapps/
/webapps/*/
";
/// The feed is `deployments` or the server's directory. `.dodeploy` and `.skipdeploy` are the user's.
const WILDFLY: &str = "
*.isdeploying
*.deployed
*.isundeploying
*.undeployed
*.failed
*.pending
/tmp/
/log/
/data/
";
/// The feed is `repository/deployment/server`.
const WSO2: &str = "
/webapps/*/
/jaxwebapps/*/
/carbonapps/work/
/work/
/tmp/
";
/// The feed is Karaf's base directory or its `deploy`.
const KARAF: &str = "
/data/
/tmp/
/log/
/lock
";

/// What an application server writes by itself into the folder that it deploys from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Apache Tomcat, the feed being its base directory or `webapps`.
    Tomcat,
    /// WildFly and `JBoss`, the feed being `deployments` or the server's directory.
    Wildfly,
    /// WSO2 Carbon, the feed being `repository/deployment/server`.
    Wso2,
    /// Apache Karaf, the feed being its base directory or `deploy`.
    Karaf,
}

impl Profile {
    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Tomcat => "tomcat",
            Profile::Wildfly => "wildfly",
            Profile::Wso2 => "wso2",
            Profile::Karaf => "karaf",
        }
    }

    fn patterns(self) -> &'static str {
        match self {
            Profile::Tomcat => TOMCAT,
            Profile::Wildfly => WILDFLY,
            Profile::Wso2 => WSO2,
            Profile::Karaf => KARAF,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A profile's name that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no profile \"{0}\": tomcat, wildfly, wso2 and karaf are known")]
pub struct BadProfile(String);

impl FromStr for Profile {
    type Err = BadProfile;

    fn from_str(text: &str) -> Result<Self, BadProfile> {
        [Profile::Tomcat, Profile::Wildfly, Profile::Wso2, Profile::Karaf]
            .into_iter()
            .find(|profile| profile.as_str() == text)
            .ok_or_else(|| BadProfile(text.chars().take(80).collect()))
    }
}

/// Why `.depsyncignore` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIgnore {
    /// A line is no pattern.
    #[error(".depsyncignore, line {line}: \"{pattern}\" is not a pattern: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The line.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file as a whole.
    #[error(".depsyncignore cannot be used: {0}")]
    Whole(String),
}

/// Why a path is not part of the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// A git repository's own folder, or a name that is ours.
    Reserved,
    /// Our own temporary file, or the hold file.
    Ours,
    /// A file that is being uploaded or edited.
    Unfinished,
    /// What the application server writes.
    Profile,
    /// The user's `.depsyncignore`.
    Ignored,
}

impl LeftOut {
    /// For people.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            LeftOut::Reserved => "a name that no feed may hold",
            LeftOut::Ours => "depsync's own file",
            LeftOut::Unfinished => "a name of an upload or an editor",
            LeftOut::Profile => "written by the application server",
            LeftOut::Ignored => "named in .depsyncignore",
        }
    }

    /// Whether an operator should hear of it: the rest is expected.
    #[must_use]
    pub fn is_reported(self) -> bool {
        self == LeftOut::Reserved
    }
}

/// The rules of one feed.
pub struct Names {
    unfinished: Gitignore,
    profile: Gitignore,
    user: Gitignore,
}

impl Names {
    /// The rules of a profile and of the text of `.depsyncignore` (empty: none).
    ///
    /// # Errors
    /// The first line that is not a pattern.
    pub fn new(profile: Option<Profile>, ignore_file: &[u8]) -> Result<Self, BadIgnore> {
        Ok(Self {
            unfinished: compile(UNFINISHED)?,
            profile: compile(profile.map_or("", Profile::patterns))?,
            user: compile(&text_of(ignore_file)?)?,
        })
    }

    /// Why `path` is left out; none when it belongs to the feed. Looks at its folders too.
    #[must_use]
    pub fn left_out(&self, path: &RelPath, is_dir: bool) -> Option<LeftOut> {
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends {
            let folder = self.entry(&bytes[..end], true);
            if folder.is_some() {
                return folder;
            }
        }
        self.entry(bytes, is_dir)
    }

    /// As [`Names::left_out`] for an entry of a folder that itself belongs to the feed.
    #[must_use]
    pub fn left_out_of_folder(&self, path: &RelPath, is_dir: bool) -> Option<LeftOut> {
        self.entry(path.as_bytes(), is_dir)
    }

    fn entry(&self, path: &[u8], is_dir: bool) -> Option<LeftOut> {
        if path.is_empty() {
            return None;
        }
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        let as_path = Path::new(OsStr::from_bytes(path));
        let hit = |rules: &Gitignore| rules.matched(as_path, is_dir).is_ignore();
        if name.starts_with(TEMP_PREFIX) || path == HOLD_FILE {
            return Some(LeftOut::Ours);
        }
        // A folder is never an upload: only what can be half written is judged by such names.
        if !is_dir && (hit(&self.unfinished) || is_rsync_temp(name)) {
            return Some(LeftOut::Unfinished);
        }
        match self.user.matched(as_path, is_dir) {
            Match::Ignore(_) => Some(LeftOut::Ignored),
            // `!pattern` of the user's brings back what a profile leaves out.
            Match::Whitelist(_) => None,
            Match::None => hit(&self.profile).then_some(LeftOut::Profile),
        }
    }
}

/// rsync writes `name` as `.name.XXXXXX` (mkstemp: six letters or digits) and renames it. A dot file
/// with six lower-case letters at its end (`.config.backup`) is a name that people give, so at least
/// one of the six must be a digit or a capital letter.
fn is_rsync_temp(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b".") else { return false };
    let Some(dot) = rest.iter().rposition(|&byte| byte == b'.') else { return false };
    let tail = &rest[dot + 1..];
    dot > 0
        && tail.len() == 6
        && tail.iter().all(u8::is_ascii_alphanumeric)
        && !tail.iter().all(u8::is_ascii_lowercase)
}

fn text_of(ignore_file: &[u8]) -> Result<String, BadIgnore> {
    if ignore_file.len() > MAX_IGNORE {
        return Err(BadIgnore::Whole(format!("it is over {MAX_IGNORE} bytes")));
    }
    let text = ignore_file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(ignore_file);
    String::from_utf8(text.to_vec()).map_err(|error| BadIgnore::Whole(error.to_string()))
}

fn compile(patterns: &str) -> Result<Gitignore, BadIgnore> {
    let mut builder = GitignoreBuilder::new("");
    for (index, line) in patterns.lines().enumerate() {
        builder.add_line(None, line).map_err(|error| BadIgnore::Line {
            line: index + 1,
            pattern: line.chars().take(200).collect(),
            reason: error.to_string(),
        })?;
    }
    builder.build().map_err(|error| BadIgnore::Whole(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn names(profile: Option<Profile>, ignore: &str) -> Names {
        Names::new(profile, ignore.as_bytes()).unwrap()
    }

    #[test]
    fn uploads_and_editors_are_left_out_at_every_level() {
        let names = names(None, "");
        for name in [
            "app.war.part",
            "app.war.filepart",
            "a.tmp",
            "a.crdownload",
            ".a.txt.swp",
            ".a.swx",
            "a~",
            ".app.war.Xy12Zq",
            ".#lock",
            "#auto#",
            "4913",
            ".nfs0000000012345",
        ] {
            assert_eq!(names.left_out(&path(name), false), Some(LeftOut::Unfinished), "{name}");
            let deep = path(&format!("a/b/{name}"));
            assert_eq!(names.left_out(&deep, false), Some(LeftOut::Unfinished), "{name}");
        }
        for name in [
            "app.war",
            "part",
            ".bashrc",
            ".config.backup",
            ".htaccess",
            "a.b.ABC123",
            "tmp",
            "a.swp.txt",
            "README.templ",
            ".depsyncignore",
            "x~y",
            "nfs",
        ] {
            assert_eq!(names.left_out(&path(name), false), None, "{name}");
        }
        assert_eq!(names.left_out(&path("spool.tmp"), true), None, "a folder is no upload");
        assert_eq!(names.left_out(&path("spool.tmp/x"), false), None);
    }

    #[test]
    fn our_own_files_are_left_out() {
        let names = names(None, "");
        assert_eq!(names.left_out(&path("a/.depsync-tmp-1"), false), Some(LeftOut::Ours));
        assert_eq!(names.left_out(&path(".depsync-hold"), false), Some(LeftOut::Ours));
        assert_eq!(names.left_out(&path("a/.depsync-hold"), false), None, "only in the root");
    }

    #[test]
    fn ignore_files_follow_gitignore() {
        let names = names(None, "# logs\n*.log\n!keep.log\n/build/\ndocs/**/*.pdf\n\\!odd\n");
        for (name, dir, left_out) in [
            ("a.log", false, true),
            ("x/y/a.log", false, true),
            ("keep.log", false, false),
            ("build", true, true),
            ("build", false, false),
            ("build/a/b", false, true),
            ("x/build/a", false, false),
            ("docs/a/b/c.pdf", false, true),
            ("!odd", false, true),
            ("main.txt", false, false),
        ] {
            assert_eq!(names.left_out(&path(name), dir).is_some(), left_out, "{name}");
        }
        let odd = RelPath::parse(b"\xff\xfe.log").unwrap();
        assert_eq!(names.left_out(&odd, false), Some(LeftOut::Ignored));
    }

    #[test]
    fn a_bad_pattern_names_its_line() {
        let error = Names::new(None, b"ok\n\n[z-a]\n").err().unwrap();
        assert!(matches!(&error, BadIgnore::Line { line: 3, pattern, .. } if pattern == "[z-a]"));
        assert!(Names::new(None, b"\xff\xff").is_err());
        assert!(Names::new(None, &vec![b'a'; MAX_IGNORE + 1]).is_err());
    }

    #[test]
    fn profiles_leave_out_what_the_server_writes() {
        for (profile, name, dir, left_out) in [
            (Profile::Tomcat, "webapps/shop.war", false, false),
            (Profile::Tomcat, "webapps/shop", true, true),
            (Profile::Tomcat, "webapps/shop/WEB-INF/web.xml", false, true),
            (Profile::Tomcat, "work/Catalina", true, true),
            (Profile::Tomcat, "shop.war", false, false),
            (Profile::Tomcat, "shop/index.jsp", false, true),
            (Profile::Tomcat, "conf/server.xml", false, false),
            (Profile::Wildfly, "app.war.deployed", false, true),
            (Profile::Wildfly, "app.war.dodeploy", false, false),
            (Profile::Wildfly, "app.war", false, false),
            (Profile::Wso2, "webapps/app.war", false, false),
            (Profile::Wso2, "webapps/app/index.jsp", false, true),
            (Profile::Wso2, "synapse-configs/default/api/a.xml", false, false),
            (Profile::Karaf, "deploy/a.kar", false, false),
            (Profile::Karaf, "data/cache/x", false, true),
        ] {
            let names = names(Some(profile), "");
            let found = names.left_out(&path(name), dir);
            assert_eq!(found.is_some(), left_out, "{profile} {name}");
        }
        let exploded = names(Some(Profile::Tomcat), "!/webapps/ROOT/");
        assert_eq!(exploded.left_out(&path("webapps/ROOT/a.jsp"), false), None);
        assert_eq!(exploded.left_out(&path("webapps/x/a.jsp"), false), Some(LeftOut::Profile));
        assert_eq!("wso2".parse(), Ok(Profile::Wso2));
        assert!("glassfish".parse::<Profile>().unwrap_err().to_string().contains("karaf"));
    }
}
