//! Every operation: its parameters, its body and what it answers.
//!
//! What all of a kind have in common (a missing token, a feed that is not there) is added where the
//! description is built. `{path}` stands for the rest of a path, empty too.

/// A field of a JSON body.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) about: &'static str,
}

/// What a request carries.
pub(super) enum Body {
    None,
    /// Bytes of some media type.
    Bytes(&'static str),
    /// A JSON object of these, none of them necessary unless it says so.
    Fields(&'static [Field]),
}

/// Names with what they mean.
type Named = &'static [(&'static str, &'static str)];

/// One method of one path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) details: &'static str,
    pub(super) query: Named,
    pub(super) headers: Named,
    pub(super) body: Body,
    /// The media type of what it answers when all is well.
    pub(super) kind: &'static str,
    pub(super) answers: &'static [(u16, &'static str)],
}

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

const LIMIT: (&str, &str) = ("limit", "How many items: 100, at most 1,000.");
const AFTER: (&str, &str) = ("after", "The `next` of the page before.");
const PAGE: Named = &[LIMIT, AFTER];
const ONLY_LIMIT: Named = &[LIMIT];
const GROUP: (&str, &str) = ("resource_group", "The client's resource group.");
const VIA: (&str, &str) = ("via", "A node's id, a region's name, or `primary`.");
const EXP: (&str, &str) =
    ("exp", "Of a redirect: until when it opens this file, in seconds since 1970.");
const SIG: (&str, &str) = ("sig", "Of a redirect: the signature.");
const DOWNLOAD: Named = &[GROUP, VIA, LIMIT, AFTER, EXP, SIG];
const WAIT: (&str, &str) = ("wait", "`commit` or `regions`: what to wait for.");
const TIMEOUT: (&str, &str) = ("timeout", "How long, as in `60s`; 1 h at most.");
const CONDITIONS: Named = &[
    ("Range", "One range of bytes."),
    ("If-Range", "An ETag: the range only if the file is still this."),
    ("If-None-Match", "ETags: 304 if it is one of them."),
    ("If-Match", "ETags: 412 if it is none of them."),
    ("X-Resource-Group", "The client's resource group."),
    ("X-Forwarded-For", "The client's address; believed from listed proxies alone."),
];
const OBJECT: Named = &[
    ("Range", "One range of bytes."),
    ("If-Range", "An ETag: the range only if it is still this."),
    ("If-None-Match", "ETags: 304 if it is one of them."),
    ("If-Match", "ETags: 412 if it is none of them."),
];

const SENT: &[(u16, &str)] = &[
    (200, "The file, or a folder's listing (HTML for browsers)."),
    (206, "The range that was asked for."),
    (304, "The client has this version."),
    (307, "The client's own region serves it, or the redirect that led here has ended."),
    (400, "The path or a parameter cannot be read."),
    (404, "No such feed, commit or path; `nothing_published`."),
    (410, "Revoked, or no longer kept."),
    (412, "If-Match does not hold."),
    (416, "The range holds none of the file."),
    (422, "A reserved name."),
    (503, "Not now; Retry-After says when: the queue is full, or it is still being fetched."),
];

const COMMAND: &[(u16, &str)] = &[
    (200, "Done, durable and in force."),
    (409, "The state of the feed forbids it; the message says why."),
    (503, "The feed takes no commands now, or is still busy with it."),
];

const COMMIT: Field = Field {
    name: "commit",
    kind: "string",
    about: "The 40 hex digits of a published commit. Necessary.",
};
const NODE: Field = Field { name: "node", kind: "string", about: "A node's id, or its label." };
const REGION: Field = Field { name: "region", kind: "string", about: "A region's name." };

const fn get(path: &'static str, tag: &'static str, summary: &'static str) -> Operation {
    Operation {
        method: "GET",
        path,
        tag,
        summary,
        details: "",
        query: &[],
        headers: &[],
        body: Body::None,
        kind: JSON,
        answers: &[(200, "As described.")],
    }
}

const fn command(path: &'static str, summary: &'static str, fields: &'static [Field]) -> Operation {
    Operation {
        method: "POST",
        body: Body::Fields(fields),
        answers: COMMAND,
        ..get(path, "control", summary)
    }
}

/// All of them, as `docs/access.md` has them.
pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        kind: "text/html",
        answers: &[(200, "The page."), (304, "The client has it.")],
        ..get("/", "console", "The console: one page, for anybody; it holds no data")
    },
    Operation {
        kind: BYTES,
        answers: &[
            (200, "The part."),
            (304, "The client has it."),
            (404, "There is no such part."),
        ],
        ..get("/console/{file}", "console", "A part of the console's page")
    },
    get("/v1/openapi.json", "console", "This description"),
    Operation {
        kind: "text/plain",
        answers: &[(200, "It lives; `X-Depsync-Node` says who.")],
        ..get("/livez", "health", "Whether the edge answers")
    },
    Operation {
        answers: &[
            (200, "Ready."),
            (503, "A feed cannot be served, or a stage has stopped; `faults` names them."),
        ],
        ..get("/readyz", "health", "Whether every feed can be served and no stage is stuck")
    },
    Operation {
        query: &[("verbose", "Also notices, and what each stage is at.")],
        answers: &[
            (200, "All is well."),
            (503, "Somebody is needed; `faults` says what is wrong, since when, and what to do."),
        ],
        ..get("/healthz", "health", "Whether anything needs an operator")
    },
    Operation {
        kind: "text/plain",
        ..get("/metrics", "health", "Metrics in Prometheus's text format")
    },
    Operation { query: PAGE, ..get("/v1/feeds", "content", "The feeds of this node") },
    Operation {
        headers: &[("X-Depsync-Have", "Of a mirror: the head that it has.")],
        ..get("/v1/feeds/{feed}", "content", "Where a feed stands: version, state, what waits")
    },
    Operation {
        details: "The primary leads the client to its region's node, or serves; a region answers from what it has.",
        query: DOWNLOAD,
        headers: CONDITIONS,
        kind: BYTES,
        answers: SENT,
        ..get(
            "/v1/feeds/{feed}/files/{path}",
            "content",
            "The newest version of a file, or a folder's listing",
        )
    },
    Operation {
        method: "PUT",
        query: &[WAIT, TIMEOUT],
        headers: &[
            ("Repr-Digest", "`sha-256=:…:`; checked before the file is put in place."),
            ("X-Resource-Group", "The client's resource group."),
        ],
        body: Body::Bytes(BYTES),
        answers: &[
            (200, "It was there already, and is as it was sent."),
            (201, "The file lies whole in the watched folder; path and SHA-256."),
            (307, "The primary takes it."),
            (400, "The path, a parameter or the digest cannot be read, or the body broke off."),
            (409, "A folder lies there, or something that is no folder lies on the way."),
            (413, "More than 16 GiB."),
            (422, "Left out of the feed, a reserved name, or another digest than was said."),
            (503, "The folder is not open yet, or there is no room; Retry-After."),
            (
                504,
                "Not committed, or not verified everywhere, in time; the answer names who lacks it.",
            ),
        ],
        ..get("/v1/feeds/{feed}/files/{path}", "content", "Upload a file")
    },
    Operation {
        method: "DELETE",
        query: &[WAIT, TIMEOUT],
        answers: &[
            (202, "The guard holds the removal until somebody approves it."),
            (200, "Removed, with who has verified it."),
            (204, "Removed."),
            (307, "The primary takes it."),
            (400, "The path or a parameter cannot be read."),
            (409, "A folder lies there, or the root is another one."),
            (422, "A reserved name."),
            (503, "The folder is not open yet."),
            (504, "Not committed, or not verified everywhere, in time."),
        ],
        ..get("/v1/feeds/{feed}/files/{path}", "content", "Remove a file")
    },
    Operation {
        query: DOWNLOAD,
        headers: CONDITIONS,
        kind: BYTES,
        answers: SENT,
        ..get(
            "/v1/feeds/{feed}/at/{commit}/{path}",
            "content",
            "Exactly that version of a file, whatever is checked out now",
        )
    },
    Operation {
        query: &[EXP, SIG],
        kind: "application/x-tar",
        answers: &[
            (200, "The folder as a tar."),
            (400, "The path cannot be read."),
            (404, "No such folder, or no `.tar`."),
            (410, "A part is no longer kept."),
            (422, "A reserved name."),
            (503, "Too many are being sent."),
        ],
        ..get(
            "/v1/feeds/{feed}/archive/{path}",
            "content",
            "A folder of the newest version as one stream: `{path}.tar`",
        )
    },
    Operation {
        query: PAGE,
        answers: &[
            (200, "Its entries."),
            (400, "The commit or the path cannot be read."),
            (404, "No such commit or folder."),
            (422, "A reserved name."),
        ],
        ..get("/v1/feeds/{feed}/tree/{commit}/{path}", "history", "A folder of any version")
    },
    Operation {
        query: PAGE,
        answers: &[(200, "Commits, the newest first."), (404, "No such commit to go on after.")],
        ..get(
            "/v1/feeds/{feed}/log",
            "history",
            "The versions of a feed: who made them, when, and why",
        )
    },
    Operation {
        query: PAGE,
        answers: &[(200, "The paths that differ, each with how."), (404, "No such commit.")],
        ..get("/v1/feeds/{feed}/diff/{range}", "history", "What differs between two versions")
    },
    Operation {
        query: PAGE,
        ..get("/v1/feeds/{feed}/held", "control", "Changes that wait, each with the reason")
    },
    get(
        "/v1/feeds/{feed}/upkeep",
        "operation",
        "The repository: sizes, growth, what gc and fsck did and found",
    ),
    Operation {
        query: ONLY_LIMIT,
        ..get(
            "/v1/feeds/{feed}/propagation",
            "fleet",
            "How long the last versions took to arrive at each node",
        )
    },
    Operation {
        query: &[("commit", "Which; default: the newest."), TIMEOUT],
        answers: &[
            (200, "Every region that is waited for has verified it."),
            (404, "No such commit."),
            (504, "Somebody lacks it: `lacking` names them."),
        ],
        ..get("/v1/feeds/{feed}/wait", "fleet", "Wait until every region has verified a version")
    },
    Operation {
        details: "A WebSocket that speaks `depsync.v1`.",
        answers: &[
            (101, "Frames follow."),
            (400, "It is no WebSocket's request."),
            (426, "Another version of the protocol."),
        ],
        ..get("/v1/feeds/{feed}/follow", "replication", "Announcements")
    },
    Operation {
        query: &[("depth", "`1`: the version without its history.")],
        headers: OBJECT,
        kind: BYTES,
        answers: &[
            (200, "The pack; its checksum is the ETag."),
            (206, "The range."),
            (304, "The client has it."),
            (404, "No such commit; `unknown_have`: ask with an older one."),
            (412, "If-Match does not hold."),
            (416, "No such range."),
            (503, "It cannot be made now."),
        ],
        ..get(
            "/v1/feeds/{feed}/packs/{range}",
            "replication",
            "All that the second version needs and the first has not, as a git pack",
        )
    },
    Operation {
        headers: OBJECT,
        kind: BYTES,
        answers: &[
            (200, "The object."),
            (206, "The range."),
            (304, "The client has it."),
            (400, "No object's name."),
            (404, "It is not here."),
            (410, "No longer kept."),
            (412, "If-Match does not hold."),
            (416, "No such range."),
            (503, "It is being repaired or fetched."),
        ],
        ..get("/v1/feeds/{feed}/objects/{sha256}", "replication", "A large file's content")
    },
    Operation {
        headers: OBJECT,
        kind: BYTES,
        answers: &[
            (200, "The delta."),
            (206, "The range."),
            (304, "The client has it."),
            (400, "No object's name."),
            (404, "One of them is not here, or a delta is not worth it."),
            (410, "No longer kept."),
            (412, "If-Match does not hold."),
            (416, "No such range."),
            (503, "It cannot be made now."),
        ],
        ..get(
            "/v1/feeds/{feed}/objects/{sha256}/from/{base}",
            "replication",
            "How to make one object out of another",
        )
    },
    command("/v1/feeds/{feed}/sync", "Look now: a primary scans, a region asks for the head", &[]),
    command("/v1/feeds/{feed}/hold", "Gather changes and publish none", &[]),
    command(
        "/v1/feeds/{feed}/release",
        "Publish what was gathered or held back, as one version",
        &[],
    ),
    command(
        "/v1/feeds/{feed}/approve",
        "Let pass what is held: a list of deletions, a path as it is, or the replaced root",
        &[
            Field {
                name: "id",
                kind: "string",
                about: "The list that was seen; another one is refused.",
            },
            Field { name: "path", kind: "string", about: "A file that is incomplete." },
            Field {
                name: "root",
                kind: "boolean",
                about: "The directory, though it is another one.",
            },
        ],
    ),
    command(
        "/v1/feeds/{feed}/reject",
        "Put the files back whose deletion is held",
        &[Field { name: "id", kind: "string", about: "The list that was seen." }],
    ),
    Operation {
        answers: &[
            (200, "Done."),
            (404, "No such commit."),
            (409, "The state of the feed forbids it."),
            (410, "The commit is revoked, or no longer kept."),
            (503, "Busy."),
        ],
        ..command(
            "/v1/feeds/{feed}/rollback",
            "Bring an older version back, as a new one",
            &[COMMIT],
        )
    },
    Operation {
        answers: &[
            (200, "Done."),
            (404, "No such commit or node."),
            (409, "The state of the feed forbids it."),
            (410, "The commit is revoked."),
            (503, "Busy."),
        ],
        ..command(
            "/v1/feeds/{feed}/pin",
            "Keep all nodes, one, or a region's, at a version",
            &[COMMIT, NODE, REGION],
        )
    },
    command("/v1/feeds/{feed}/unpin", "Let them go to the newest again", &[NODE, REGION]),
    Operation {
        answers: &[
            (200, "Done."),
            (404, "No such commit."),
            (409, "The state of the feed forbids it."),
            (410, "It is revoked already."),
            (503, "Busy."),
        ],
        ..command("/v1/feeds/{feed}/revoke", "Nobody is given this version any more", &[COMMIT])
    },
    command(
        "/v1/feeds/{feed}/pause",
        "All nodes, one, or a region's, stay where they are",
        &[NODE, REGION],
    ),
    command("/v1/feeds/{feed}/resume", "They go on", &[NODE, REGION]),
    command(
        "/v1/feeds/{feed}/promote",
        "This node owns the feed from now on, in an epoch above all others",
        &[],
    ),
    command(
        "/v1/feeds/{feed}/demote",
        "This node mirrors the feed from now on",
        &[Field { name: "upstream", kind: "string", about: "From there; else as configured." }],
    ),
    Operation {
        answers: &[(200, "Ordered: it is done when `done` in the report has reached `order`.")],
        ..command("/v1/feeds/{feed}/gc", "Remove what no kept version needs", &[])
    },
    Operation {
        answers: &[(200, "Ordered, likewise.")],
        ..command("/v1/feeds/{feed}/fsck", "Check everything, and repair", &[])
    },
    get("/v1/node", "fleet", "Which node this is, and what its asker may do here"),
    Operation {
        query: PAGE,
        ..get("/v1/nodes", "fleet", "Every node below, through relays: want, have, lag, state")
    },
    Operation {
        method: "DELETE",
        answers: &[
            (204, "Forgotten."),
            (400, "No node's id."),
            (404, "No such node."),
            (409, "It is connected, or follows another node."),
        ],
        ..get("/v1/nodes/{id}", "fleet", "Forget a node that is gone")
    },
    Operation {
        query: PAGE,
        ..get("/v1/regions", "fleet", "The region table, and who serves each region")
    },
    Operation {
        query: &[("from", "The client's address; default: the asker's."), GROUP, VIA],
        answers: &[
            (200, "The node, the URL, why, and who was passed over."),
            (422, "A reserved name."),
        ],
        ..get("/v1/locate/{feed}/{path}", "fleet", "Who would serve this client, and why")
    },
    Operation {
        query: &[("feed", "Of one feed; default: of all."), LIMIT, AFTER],
        ..get(
            "/v1/runs",
            "operation",
            "What this node did, newest first: what was moved, and the log",
        )
    },
    Operation {
        details: "Events `node`, `feeds`, `nodes`, `regions`, `bandwidth`, `faults`, `propagation`, `runs`: each the whole of it, first all, then what has changed.",
        kind: "text/event-stream",
        answers: &[
            (200, "Events follow; a comment at least every 15 s."),
            (503, "As many listen as are let."),
        ],
        ..get("/v1/events", "operation", "Live changes, as server-sent events")
    },
    get("/v1/bandwidth", "operation", "The limits: as said, as in force, and what is going on"),
    Operation {
        method: "PUT",
        details: "Takes the place of all limits; what is left out is not limited. Holds until the configuration file changes or the daemon starts again.",
        body: Body::Fields(&[
            Field { name: "total", kind: "string", about: "Everything, as in `200MB/s`." },
            Field { name: "downloads", kind: "string", about: "To compute hosts." },
            Field { name: "replication", kind: "string", about: "To mirrors." },
            Field { name: "per_client", kind: "string", about: "To each client." },
            Field { name: "max_downloads", kind: "integer", about: "At once; more wait." },
            Field {
                name: "max_queue",
                kind: "integer",
                about: "Places to wait; more are answered 503.",
            },
            Field { name: "networks", kind: "array", about: "`{cidr or region, limit}`" },
            Field {
                name: "windows",
                kind: "array",
                about: "`{start, for_ms, timezone, total, downloads, replication, per_client}`: while open, their limits hold.",
            },
        ]),
        answers: &[(200, "In force."), (422, "Well-formed, and refused; nothing has changed.")],
        ..get("/v1/bandwidth", "operation", "Set the limits")
    },
    Operation { query: PAGE, ..get("/v1/audit", "operation", "Who did what, newest first") },
    get("/v1/tokens", "operation", "All tokens, without their secrets"),
    Operation {
        method: "POST",
        body: Body::Fields(&[
            Field {
                name: "role",
                kind: "string",
                about: "`reader`, `mirror`, `writer` or `admin`. Necessary.",
            },
            Field { name: "feed", kind: "string", about: "Good for this feed alone." },
            Field {
                name: "region",
                kind: "string",
                about: "Of a mirror: for regions whose name fits, as in `edge-*`.",
            },
            Field { name: "expires", kind: "string", about: "When it ends." },
        ]),
        answers: &[
            (201, "The token, with its secret: shown once."),
            (409, "There are too many."),
            (422, "It lets nobody in, or names what its role has not."),
        ],
        ..get("/v1/tokens", "operation", "Make a token")
    },
    Operation {
        method: "DELETE",
        answers: &[(204, "It lets nobody in any more."), (404, "No such token.")],
        ..get("/v1/tokens/{id}", "operation", "Revoke a token")
    },
    Operation {
        query: &[("service", "`git-upload-pack`")],
        kind: BYTES,
        answers: &[
            (200, "What git says."),
            (501, "git is not installed here."),
            (503, "Too many clones."),
        ],
        ..get("/git/{feed}.git/info/refs", "git", "References, to stock git")
    },
    Operation {
        method: "POST",
        body: Body::Bytes("application/x-git-upload-pack-request"),
        kind: BYTES,
        answers: &[
            (200, "What git says."),
            (501, "git is not installed here."),
            (503, "Too many clones."),
        ],
        ..get("/git/{feed}.git/git-upload-pack", "git", "Objects, to stock git")
    },
    Operation {
        method: "POST",
        body: Body::Bytes("application/vnd.git-lfs+json"),
        kind: "application/vnd.git-lfs+json",
        answers: &[
            (200, "Where the objects are."),
            (409, "Only sha256 names objects here."),
            (413, "Too many at once."),
        ],
        ..get("/git/{feed}.git/info/lfs/objects/batch", "git", "Where large files are, to git-lfs")
    },
];

/// The operation that a request is about.
#[cfg(test)]
pub(super) fn find(method: &str, path: &str) -> Option<&'static Operation> {
    let method = if method == "HEAD" { "GET" } else { method };
    OPERATIONS.iter().find(|it| it.method == method && fits(it.path, path))
}

#[cfg(test)]
fn fits(pattern: &str, path: &str) -> bool {
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    let (mut wanted, mut have) = (pattern.split('/').peekable(), path.split('/'));
    loop {
        match (wanted.next(), have.next()) {
            (Some("{path}"), _) | (None, None) => return true,
            (Some(a), Some(b)) if a == b => {}
            (Some("{feed}.git"), Some(b)) if b.strip_suffix(".git").is_some() => {}
            (Some("{feed}.git"), Some(_)) => return false,
            (Some(a), Some(b)) if a.starts_with('{') && !b.is_empty() => {}
            _ => return false,
        }
    }
}
