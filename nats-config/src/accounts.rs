//! The four accounts and their users.

use hierarchy::Path;

use crate::{
    leaf,
    names::{self, AGENT_USER, DOWN, DOWN_USER, LOCAL_USER, MESH, SYS, SYS_USER, UP, UP_USER},
    options::{Password, ServerOptions},
    permissions::{self, Permissions},
    syntax::Writer,
};

/// How a user may connect. A certificate's DNS name could otherwise make a leaf the user `local`.
const CLIENTS: [&str; 1] = ["STANDARD"];
const LEAVES: [&str; 1] = ["LEAFNODE"];

/// The `accounts` block and who is who.
pub(crate) fn write(w: &mut Writer, options: &ServerOptions) {
    let passwords = &options.passwords;
    w.block("accounts", |w| {
        w.note("Local applications and JetStream. This account never crosses a leaf link.");
        w.block(MESH, |w| {
            w.plain("jetstream", "enabled");
            w.list("users", |w| {
                user(w, AGENT_USER, &passwords.agent, None);
                local_user(w, options);
            });
        });
        w.note("The link to the parent. It stores nothing: an acknowledgement that strays in reaches nothing.");
        w.block(UP, |w| {
            w.list("users", |w| user(w, UP_USER, &passwords.up, Some(&permissions::up(&options.path))));
        });
        w.note("The links to the children, apart from UP so that no word of a child passes this level unverified.");
        w.block(DOWN, |w| {
            w.list("users", |w| {
                user(w, DOWN_USER, &passwords.down, Some(&permissions::down()));
                for child in leaf::children(options) {
                    child_user(w, &options.trust_domain, child);
                }
            });
        });
        w.note("Monitoring, and cutting off children that were revoked.");
        w.block(SYS, |w| {
            w.list("users", |w| user(w, SYS_USER, &passwords.sys, None));
        });
    });
    w.text("system_account", SYS);
    if options.local_password.is_none() {
        w.note("Whoever connects to the client port without credentials, which only this machine can.");
        w.text("no_auth_user", LOCAL_USER);
    }
}

fn user(w: &mut Writer, name: &str, password: &Password, limits: Option<&Permissions>) {
    w.item(|w| {
        w.text("user", name);
        w.text("password", password.expose());
        w.texts("allowed_connection_types", &CLIENTS);
        if let Some(limits) = limits {
            write_permissions(w, limits);
        }
    });
}

fn local_user(w: &mut Writer, options: &ServerOptions) {
    w.item(|w| {
        w.text("user", LOCAL_USER);
        if let Some(password) = &options.local_password {
            w.text("password", password.expose());
        }
        w.texts("allowed_connection_types", &CLIENTS);
        write_permissions(w, &permissions::local(&options.path));
    });
}

/// A child has no password: its certificate names the user, and only a leaf connection may be it.
fn child_user(w: &mut Writer, trust_domain: &str, child: &Path) {
    w.item(|w| {
        w.text("user", &names::spiffe_id(trust_domain, child));
        w.texts("allowed_connection_types", &LEAVES);
        write_permissions(w, &permissions::child(child));
    });
}

fn write_permissions(w: &mut Writer, permissions: &Permissions) {
    w.block("permissions", |w| {
        for (key, rules) in [("publish", &permissions.publish), ("subscribe", &permissions.subscribe)] {
            w.block(key, |w| {
                w.texts("allow", &rules.allow);
                if !rules.deny.is_empty() {
                    w.texts("deny", &rules.deny);
                }
            });
        }
    });
}
