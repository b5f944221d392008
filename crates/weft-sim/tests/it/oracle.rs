//! What the mesh ought to do, said without the mesh: a few resources whose meaning is written out by hand.

use weft_model::Revision;
use weft_resources::{Resource, admit, parse};
use weft_sim::seeded::Dice;

/// One request or connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The caller's service account.
    pub from: &'static str,
    /// The service that is called: `api` over HTTP, `db` over TCP.
    pub to: &'static str,
    pub method: &'static str,
    pub path: &'static str,
    pub canary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiPolicy {
    /// No policy: whoever is authenticated.
    Absent,
    Web,
    /// GET below /items, by web.
    Reads,
    /// Everything but /admin.
    NoAdmin,
    /// An ALLOW policy without a rule.
    Nobody,
    /// Its only rule names an identity that nobody has.
    Typo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbPolicy {
    Absent,
    Api,
    NotWeb,
    Nobody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    Absent,
    /// Below /items to beta.
    Beta,
    /// Below /items half and half.
    Split,
    /// By a header to beta.
    Canary,
    /// Below /items to a service that is not there.
    Ghost,
}

/// Everything that an operator wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub api: ApiPolicy,
    pub db: DbPolicy,
    pub routing: Routing,
}

/// One document of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Api(ApiPolicy),
    Db(DbPolicy),
    Routing(Routing),
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    To(&'static [&'static str]),
    Broken,
}

/// What was in force from which revision on.
#[derive(Debug, Default)]
pub struct History(Vec<Era>);

#[derive(Debug)]
struct Era {
    /// Not before.
    after: Revision,
    /// For certain.
    from: Revision,
    rules: Rules,
}

// === impl Rules ===

impl Rules {
    pub const FIRST: Self = Self { api: ApiPolicy::Absent, db: DbPolicy::Absent, routing: Routing::Absent };

    #[must_use]
    pub fn with(self, change: Change) -> Self {
        match change {
            Change::Api(api) => Self { api, ..self },
            Change::Db(db) => Self { db, ..self },
            Change::Routing(routing) => Self { routing, ..self },
        }
    }

    pub fn route(&self, ask: &Ask) -> Route {
        let items = ask.path.starts_with("/items");
        match (ask.to, self.routing) {
            ("api", Routing::Beta) if items => Route::To(&["beta"]),
            ("api", Routing::Split) if items => Route::To(&["api", "beta"]),
            ("api", Routing::Canary) if ask.canary => Route::To(&["beta"]),
            ("api", Routing::Ghost) if items => Route::Broken,
            ("api", _) => Route::To(&["api"]),
            ("db", _) => Route::To(&["db"]),
            (other, _) => panic!("nobody calls {other}"),
        }
    }

    /// May `from` do this at an instance of `service`?
    pub fn allows(&self, service: &str, from: &str, method: &str, path: &str) -> bool {
        match service {
            "api" => match self.api {
                ApiPolicy::Absent => true,
                ApiPolicy::Web => from == "web",
                ApiPolicy::Reads => from == "web" && method == "GET" && path.starts_with("/items"),
                ApiPolicy::NoAdmin => !path.starts_with("/admin"),
                ApiPolicy::Nobody | ApiPolicy::Typo => false,
            },
            "db" => match self.db {
                DbPolicy::Absent => true,
                DbPolicy::Api => from == "api",
                DbPolicy::NotWeb => from != "web",
                DbPolicy::Nobody => false,
            },
            _ => true,
        }
    }
}

// === impl Change ===

impl Change {
    pub fn some(dice: &mut Dice) -> Self {
        fn pick<T: Copy>(dice: &mut Dice, of: &[T]) -> T {
            *dice.pick(of).unwrap()
        }
        use {ApiPolicy as A, DbPolicy as D, Routing as R};
        match dice.below(3) {
            0 => Self::Api(pick(dice, &[A::Absent, A::Web, A::Reads, A::NoAdmin, A::Nobody, A::Typo])),
            1 => Self::Db(pick(dice, &[D::Absent, D::Api, D::NotWeb, D::Nobody])),
            _ => Self::Routing(pick(dice, &[R::Absent, R::Beta, R::Split, R::Canary, R::Ghost])),
        }
    }

    /// The document, and whether it is to be there.
    pub fn document(self, trust_domain: &str) -> (Resource, bool) {
        let policy = |name: &str, spec: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: {name}, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n{spec}"
            )
        };
        let from =
            |account: &str| format!("from: [{{source: {{principals: [\"{trust_domain}/ns/shop/sa/{account}\"]}}}}]");
        let (text, there) = match self {
            Self::Api(api) => {
                let spec = match api {
                    ApiPolicy::Absent | ApiPolicy::Nobody => String::new(),
                    ApiPolicy::Web => format!("  rules: [{{{}}}]", from("web")),
                    ApiPolicy::Reads => {
                        let to = "to: [{operation: {methods: [GET], paths: [\"/items*\"]}}]";
                        format!("  rules: [{{{}, {to}}}]", from("web"))
                    }
                    ApiPolicy::NoAdmin => {
                        "  action: DENY\n  rules: [{to: [{operation: {paths: [\"/admin*\"]}}]}]".into()
                    }
                    ApiPolicy::Typo => "  rules: [{from: [{source: {serviceAccounts: [wbe]}}]}]".into(),
                };
                (policy("api", &spec), api != ApiPolicy::Absent)
            }
            Self::Db(db) => {
                let spec = match db {
                    DbPolicy::Absent | DbPolicy::Nobody => String::new(),
                    DbPolicy::Api => format!("  rules: [{{{}}}]", from("api")),
                    DbPolicy::NotWeb => format!("  action: DENY\n  rules: [{{{}}}]", from("web")),
                };
                (policy("db", &spec), db != DbPolicy::Absent)
            }
            Self::Routing(routing) => {
                let items = |to: &str| format!("  - matches: [{{path: {{value: /items}}}}]\n    backendRefs: {to}\n");
                let first = match routing {
                    Routing::Absent => String::new(),
                    Routing::Beta => items("[{name: beta, port: 80}]"),
                    Routing::Split => items("[{name: api, port: 80}, {name: beta, port: 80}]"),
                    Routing::Ghost => items("[{name: ghost, port: 80}]"),
                    Routing::Canary => "  - matches: [{headers: [{name: x-canary, value: \"yes\"}]}]\n    \
                                        backendRefs: [{name: beta, port: 80}]\n"
                        .into(),
                };
                let text = format!(
                    "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: api, namespace: shop}}\n\
                     spec:\n  parentRefs: [{{kind: Service, name: api, port: 80}}]\n  rules:\n{first}  - backendRefs: [{{name: api, port: 80}}]\n"
                );
                (text, routing != Routing::Absent)
            }
        };
        let document = parse("sim.yaml", &text).remove(0).unwrap_or_else(|e| panic!("{e}\n{text}"));
        (admit(&document).unwrap_or_else(|e| panic!("{e}\n{text}")), there)
    }
}

// === impl History ===

impl History {
    pub fn last(&self) -> Rules {
        self.0.last().map_or(Rules::FIRST, |era| era.rules)
    }

    /// In force from some revision in `(after, from]` on.
    pub fn push(&mut self, after: Revision, from: Revision, rules: Rules) {
        self.0.push(Era { after, from, rules });
    }

    /// What may be in force at a revision: one thing, unless it is unknown when exactly it came.
    pub fn at(&self, revision: Revision) -> Vec<Rules> {
        let certain = self.0.iter().rposition(|era| era.from <= revision);
        let mut found = vec![certain.map_or(Rules::FIRST, |i| self.0[i].rules)];
        let later = self.0.iter().skip(certain.map_or(0, |i| i + 1));
        found.extend(later.filter(|era| era.after < revision).map(|era| era.rules));
        found
    }

    /// Everything that may have been in force on the way from one revision to another.
    pub fn during(&self, from: Revision, to: Revision) -> Vec<Rules> {
        let mut found = self.at(from);
        found.extend(self.0.iter().filter(|era| era.from > from && era.after < to).map(|era| era.rules));
        found
    }
}
