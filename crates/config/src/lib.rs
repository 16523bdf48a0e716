//! deploy.yml, secrets and host.yml become checked types, with line-accurate complaints.
