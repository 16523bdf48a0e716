//! The merged file as Kamal's classes look at it: roles, hosts and tags, before anything is resolved.

use crate::yaml::tree::{Map, Node, Value};

/// The root of a merged configuration.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a> {
    root: &'a Map,
}

/// A host and the tags written with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaggedHost {
    pub(crate) host: String,
    pub(crate) tags: Vec<String>,
}

/// A role as written.
#[derive(Clone)]
pub(crate) struct RawRole<'a> {
    pub(crate) name: String,
    /// Its map; `None` when it is only a list of hosts.
    pub(crate) map: Option<&'a Map>,
    /// The list of hosts.
    hosts: Option<&'a Node>,
}

impl<'a> Raw<'a> {
    pub(crate) fn new(root: &'a Map) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &'a Map {
        self.root
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Node> {
        self.root.get(key)
    }

    /// The map of a section; `None` when it is absent or of the wrong type.
    pub(crate) fn section(&self, key: &str) -> Option<&'a Map> {
        self.get(key).and_then(Node::as_map)
    }

    /// Text of a key that Kamal takes for a string.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.get(key).filter(|node| node.is_truthy()).map(Node::to_s)
    }

    /// An integer.
    pub(crate) fn int(&self, key: &str) -> Option<i64> {
        self.get(key).and_then(Node::as_int)
    }

    pub(crate) fn primary_role_name(&self) -> String {
        self.text("primary_role").unwrap_or_else(|| "web".to_owned())
    }

    /// Roles in alphabetical order. Only well-formed ones: text names.
    pub(crate) fn roles(&self) -> Vec<RawRole<'a>> {
        let Some(servers) = self.get("servers") else {
            return Vec::new();
        };
        let mut roles: Vec<RawRole<'a>> = match &servers.value {
            Value::Seq(_) => vec![RawRole {
                name: "web".to_owned(),
                map: None,
                hosts: Some(servers),
            }],
            Value::Map(map) => map
                .iter()
                .filter_map(|(name, role)| {
                    Some(RawRole {
                        name: name.as_str()?.to_owned(),
                        map: role.as_map(),
                        hosts: match &role.value {
                            Value::Seq(_) => Some(role),
                            _ => role.get("hosts"),
                        },
                    })
                })
                .collect(),
            _ => Vec::new(),
        };
        roles.sort_by(|left, right| left.name.cmp(&right.name));
        roles
    }

    pub(crate) fn role(&self, name: &str) -> Option<RawRole<'a>> {
        self.roles().into_iter().find(|role| role.name == name)
    }

    /// Accessories in file order, with text names.
    pub(crate) fn accessories(&self) -> Vec<(&'a Node, &'a Node)> {
        self.section("accessories")
            .map(|map| map.iter().filter(|(name, _)| name.as_str().is_some()).collect())
            .unwrap_or_default()
    }

    /// Where an accessory runs; `None` when Kamal cannot tell (tags with a plain list of servers).
    pub(crate) fn accessory_hosts(&self, accessory: &Map) -> Option<Vec<String>> {
        let texts = |node: &Node| -> Vec<String> {
            node.as_seq().unwrap_or_default().iter().map(host_text).collect()
        };
        let of_role = |name: &Node| -> Vec<String> {
            self.role(&name.to_s())
                .map(|role| role.hosts().into_iter().map(|tagged| tagged.host).collect())
                .unwrap_or_default()
        };
        if let Some(host) = accessory.get("host") {
            return Some(vec![host.to_s()]);
        }
        if let Some(hosts) = accessory.get("hosts") {
            return Some(texts(hosts));
        }
        if let Some(role) = accessory.get("role") {
            return Some(of_role(role));
        }
        if let Some(roles) = accessory.get("roles") {
            return Some(
                roles
                    .as_seq()
                    .unwrap_or_default()
                    .iter()
                    .flat_map(of_role)
                    .collect(),
            );
        }
        if let Some(tag) = accessory.get("tag") {
            return self.hosts_with_tag(&tag.to_s());
        }
        let tags = accessory.get("tags")?.as_seq()?;
        let mut hosts = Vec::new();
        for tag in tags {
            hosts.extend(self.hosts_with_tag(&tag.to_s())?);
        }
        Some(hosts)
    }

    /// Hosts that carry a tag. Kamal looks only at roles that are plain lists.
    fn hosts_with_tag(&self, tag: &str) -> Option<Vec<String>> {
        let servers = self.get("servers")?.as_map()?;
        let mut hosts = Vec::new();
        for (_, role) in servers.iter() {
            for item in role.as_seq().unwrap_or_default() {
                let Some((host, tags)) = item.as_map().and_then(|map| map.iter().next()) else {
                    continue;
                };
                // Ruby's `include?`: an element of a list, but any part of a text.
                let carries = match tags.as_seq() {
                    Some(list) => list.iter().any(|item| item.as_str() == Some(tag)),
                    None => tags.as_str().is_some_and(|text| text.contains(tag)),
                };
                if carries {
                    hosts.push(host.to_s());
                }
            }
        }
        Some(hosts)
    }
}

/// An item of `hosts:` outside roles: text, or the map Kamal would carry along.
fn host_text(node: &Node) -> String {
    match node.as_map().and_then(|map| map.iter().next()) {
        Some((host, _)) => host.to_s(),
        None => node.to_s(),
    }
}

impl RawRole<'_> {
    /// Its hosts, each once. As in Kamal, items that are neither text nor a map are dropped.
    pub(crate) fn hosts(&self) -> Vec<TaggedHost> {
        let items = match self.hosts.map(|node| &node.value) {
            Some(Value::Seq(items)) => items.as_slice(),
            _ => &[],
        };
        let mut hosts: Vec<TaggedHost> = Vec::new();
        for item in items {
            let tagged = match &item.value {
                Value::Str(host) => TaggedHost {
                    host: host.clone(),
                    tags: Vec::new(),
                },
                Value::Map(map) => match map.iter().next() {
                    Some((host, tags)) => TaggedHost {
                        host: host.to_s(),
                        tags: match &tags.value {
                            Value::Seq(tags) => tags.iter().map(Node::to_s).collect(),
                            Value::Null => Vec::new(),
                            _ => vec![tags.to_s()],
                        },
                    },
                    None => continue,
                },
                _ => continue,
            };
            // Of equal hosts the last one's tags hold, at the first one's position (a Ruby hash).
            match hosts.iter_mut().find(|known| known.host == tagged.host) {
                Some(known) => *known = tagged,
                None => hosts.push(tagged),
            }
        }
        hosts
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.map.and_then(|map| map.get(key))
    }

    /// Whether the proxy serves it: the primary role unless it says `false`, others if they say so.
    pub(crate) fn running_proxy(&self, primary: bool) -> bool {
        match self.get("proxy") {
            Some(proxy) => {
                if primary {
                    proxy.as_bool() != Some(false)
                } else {
                    proxy.is_truthy()
                }
            }
            None => primary,
        }
    }
}

/// ActiveSupport's `deep_merge`: maps merge, anything else of `over` replaces.
pub(crate) fn deep_merge(base: &mut Node, over: Node) {
    match (&mut base.value, over) {
        (
            Value::Map(base),
            Node {
                value: Value::Map(over),
                ..
            },
        ) => {
            for (key, value) in over.into_entries() {
                base.merge_entry(key, value, deep_merge);
            }
        }
        (_, over) => *base = over,
    }
}

/// Two maps, either of them perhaps absent, merged.
pub(crate) fn merged(base: Option<&Map>, over: Option<&Map>) -> Map {
    let mut base = Node {
        place: crate::yaml::tree::Place::default(),
        value: Value::Map(base.cloned().unwrap_or_default()),
        raw: None,
    };
    if let Some(over) = over {
        let over = Node {
            place: base.place,
            value: Value::Map(over.clone()),
            raw: None,
        };
        deep_merge(&mut base, over);
    }
    match base.value {
        Value::Map(map) => map,
        _ => Map::default(),
    }
}
