"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "assignment",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=True),
        sa.Column("assigned_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "attestation",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("flow", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("policy_id", sa.Integer(), nullable=False),
        sa.Column("boot_log_sha256", sa.String(), nullable=True),
        sa.Column("ima_log_sha256", sa.String(), nullable=True),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
    )
    with op.batch_alter_table("attestation", schema=None) as batch_op:
        batch_op.create_index(
            "attestation_of", ["device_id", "at", "number", "boot_log_sha256", "ima_log_sha256"], unique=False
        )

    op.create_table(
        "authority",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("others", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("activated_at", sa.BigInteger(), nullable=True),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "bootlog",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    with op.batch_alter_table("bootlog", schema=None) as batch_op:
        batch_op.create_index("log_of_body", ["body", "size"], unique=False)

    op.create_table(
        "bundle",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.Column("published_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_table(
        "certificate",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=True),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=True),
        sa.Column("enrollment_id", sa.String(), nullable=True),
        sa.Column("key_id", sa.LargeBinary(), nullable=False),
        sa.Column("tbs", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=True),
        sa.Column("room", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("reserved_at", sa.BigInteger(), nullable=False),
        sa.Column("revoke_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("held_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("serial"),
        sa.UniqueConstraint("enrollment_id"),
    )
    with op.batch_alter_table("certificate", schema=None) as batch_op:
        batch_op.create_index(
            "certificate_quarantine",
            ["device_id"],
            unique=False,
            sqlite_where=sa.text("profile = 'quarantine'"),
            postgresql_where=sa.text("profile = 'quarantine'"),
        )
        batch_op.create_index(
            "certificate_revoked",
            ["issuer", "serial"],
            unique=False,
            sqlite_where=sa.text("state = 'revoked'"),
            postgresql_where=sa.text("state = 'revoked'"),
        )
        batch_op.create_index(
            "certificate_superseded",
            ["revoke_at"],
            unique=False,
            sqlite_where=sa.text("revoke_at IS NOT NULL"),
            postgresql_where=sa.text("revoke_at IS NOT NULL"),
        )
        batch_op.create_index(batch_op.f("ix_certificate_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_certificate_key_id"), ["key_id"], unique=False)

    op.create_table(
        "checkpoint",
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("size"),
    )
    op.create_table(
        "command",
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("next_try_at", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("ordered_by", sa.String(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("message_id"),
    )
    with op.batch_alter_table("command", schema=None) as batch_op:
        batch_op.create_index("command_due", ["state", "next_try_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_command_device_id"), ["device_id"], unique=False)

    op.create_table(
        "crl",
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("this_update", sa.BigInteger(), nullable=False),
        sa.Column("next_update", sa.BigInteger(), nullable=False),
        sa.Column("covers", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("authority", "number"),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("group", sa.String(), nullable=True),
        sa.Column("assurance", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("ek_id", sa.String(), nullable=True),
        sa.Column("ek_certificate", sa.LargeBinary(), nullable=True),
        sa.Column("ek_public", sa.LargeBinary(), nullable=True),
        sa.Column("ek_trust", sa.String(), nullable=False),
        sa.Column("identity_id", sa.String(), nullable=True),
        sa.Column("iak_certificate", sa.LargeBinary(), nullable=True),
        sa.Column("iak_intermediates", sa.String(), nullable=False),
        sa.Column("idevid_certificate", sa.LargeBinary(), nullable=True),
        sa.Column("station", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("health", sa.String(), nullable=False),
        sa.Column("health_at", sa.BigInteger(), nullable=True),
        sa.Column("health_event", sa.String(), nullable=True),
        sa.Column("health_why", sa.String(), nullable=True),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.Column("ek_intermediates", sa.String(), nullable=False),
        sa.Column("ak_name", sa.LargeBinary(), nullable=True),
        sa.Column("ak_public", sa.LargeBinary(), nullable=True),
        sa.Column("approved_until", sa.BigInteger(), nullable=True),
        sa.Column("reset_count", sa.BigInteger(), nullable=True),
        sa.Column("restart_count", sa.BigInteger(), nullable=True),
        sa.Column("clock", sa.BigInteger(), nullable=True),
        sa.Column("clock_safe", sa.Boolean(), nullable=True),
        sa.Column("firmware_version", sa.String(), nullable=True),
        sa.Column("last_attested_at", sa.BigInteger(), nullable=True),
        sa.Column("next_attest_at", sa.BigInteger(), nullable=True),
        sa.Column("attest_asked", sa.Integer(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=True),
        sa.Column("release_target", sa.String(), nullable=True),
        sa.Column("release_version", sa.String(), nullable=True),
        sa.Column("release_counter", sa.Integer(), nullable=False),
        sa.Column("trust_version", sa.Integer(), nullable=False),
        sa.Column("shown", sa.LargeBinary(), nullable=True),
        sa.Column("held_from", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("ek_id"),
        sa.UniqueConstraint("identity_id"),
        sa.UniqueConstraint("serial"),
    )
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.create_index("device_due", ["next_attest_at"], unique=False)
        batch_op.create_index("device_of_model", ["model", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_ak_name"), ["ak_name"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_station"), ["station"], unique=False)

    op.create_table(
        "director_metadata",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "ek_root",
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("subject_key", sa.String(), nullable=False),
        sa.Column("manufacturer", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("imported_at", sa.BigInteger(), nullable=False),
        sa.Column("imported_by", sa.String(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.Column("removed_by", sa.String(), nullable=True),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    with op.batch_alter_table("ek_root", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ek_root_changed"), ["changed"], unique=False)
        batch_op.create_index(batch_op.f("ix_ek_root_manufacturer"), ["manufacturer"], unique=False)

    op.create_table(
        "enrollment",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("flow", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("ek_id", sa.String(), nullable=False),
        sa.Column("proof", sa.String(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=True),
        sa.Column("findings", sa.Text(), nullable=True),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("ak_name", sa.LargeBinary(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=True),
        sa.Column("pcr_bank", sa.String(), nullable=False),
        sa.Column("pcrs", sa.String(), nullable=False),
        sa.Column("boot_log", sa.String(), nullable=False),
        sa.Column("ima_log", sa.String(), nullable=False),
        sa.Column("policy_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("evidence_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("refusal_id", sa.String(), nullable=True),
        sa.Column("claims", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("enrollment", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_enrollment_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_enrollment_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "est_request",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("approved_until", sa.BigInteger(), nullable=True),
        sa.Column("approved_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("device_id", "key_id"),
    )
    op.create_table(
        "est_token",
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256"),
    )
    with op.batch_alter_table("est_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_est_token_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_est_token_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "finding",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("proven", sa.Boolean(), nullable=False),
        sa.Column("response", sa.String(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("finding", schema=None) as batch_op:
        batch_op.create_index(
            "finding_open",
            ["device_id", "kind", "key"],
            unique=True,
            sqlite_where=sa.text("closed_at IS NULL"),
            postgresql_where=sa.text("closed_at IS NULL"),
        )
        batch_op.create_index(
            "finding_open_newest",
            ["id"],
            unique=False,
            sqlite_where=sa.text("closed_at IS NULL"),
            postgresql_where=sa.text("closed_at IS NULL"),
        )
        batch_op.create_index(batch_op.f("ix_finding_device_id"), ["device_id"], unique=False)

    op.create_table(
        "judge_again", sa.Column("device_id", sa.String(), nullable=False), sa.PrimaryKeyConstraint("device_id")
    )
    op.create_table(
        "leaf",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
    )
    with op.batch_alter_table("leaf", schema=None) as batch_op:
        batch_op.create_index(
            "leaf_rare",
            ["kind"],
            unique=False,
            sqlite_where=sa.text("kind NOT IN ('certificate', 'attestation', 'revocation')"),
            postgresql_where=sa.text("kind NOT IN ('certificate', 'attestation', 'revocation')"),
        )

    op.create_table(
        "lease",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "log_body",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "log_content",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "log_use",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("body", sa.Integer(), nullable=False),
        sa.Column("ima", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("device_id", "body"),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("log_use", schema=None) as batch_op:
        batch_op.create_index("log_use_of_body", ["body", "device_id"], unique=False)

    op.create_table(
        "mqttsession",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("session", sa.String(), nullable=False),
        sa.Column("session_number", sa.Integer(), nullable=False),
        sa.Column("down_sequence", sa.Integer(), nullable=False),
        sa.Column("up_sequence", sa.Integer(), nullable=False),
        sa.Column("trust_version", sa.Integer(), nullable=False),
        sa.Column("certificate_serial", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("hello_id", sa.String(), nullable=True),
        sa.Column("hello_sequence", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "operator",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_table(
        "policy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("group", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("promoted_at", sa.BigInteger(), nullable=True),
        sa.Column("promoted_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model", "version"),
    )
    with op.batch_alter_table("policy", schema=None) as batch_op:
        batch_op.create_index(
            "policy_in_force",
            ["model", "group"],
            unique=True,
            sqlite_where=sa.text("state = 'active'"),
            postgresql_where=sa.text("state = 'active'"),
        )

    op.create_table(
        "profile",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "version"),
    )
    op.create_table(
        "refusal",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("flow", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=True),
        sa.Column("serial", sa.String(), nullable=True),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("own", sa.Boolean(), nullable=False),
        sa.Column("expected", sa.Text(), nullable=False),
        sa.Column("actual", sa.Text(), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("refusal", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_refusal_at"), ["at"], unique=False)
        batch_op.create_index(batch_op.f("ix_refusal_device_id"), ["device_id"], unique=False)

    op.create_table(
        "refused_evidence",
        sa.Column("refusal_id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("policy_id", sa.Integer(), nullable=False),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.Column("boot_log", sa.LargeBinary(), nullable=True),
        sa.Column("ima_log", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("refusal_id"),
    )
    with op.batch_alter_table("refused_evidence", schema=None) as batch_op:
        batch_op.create_index("refused_evidence_of", ["device_id", "at"], unique=False)

    op.create_table(
        "release",
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("hardware", sa.String(), nullable=False),
        sa.Column("release_counter", sa.Integer(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("reference_values", sa.Text(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("target"),
    )
    op.create_table(
        "removed",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("attestations", sa.Integer(), nullable=False),
        sa.Column("attestations_until", sa.BigInteger(), nullable=True),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("logs", sa.Integer(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "removed_attestation",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("flow", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("evidence_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("removed_attestation", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_removed_attestation_device_id"), ["device_id"], unique=False)

    op.create_table(
        "revocation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("revocation", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_revocation_serial"), ["serial"], unique=False)
        batch_op.create_index("revocation_issuer", ["issuer", "id"], unique=False)

    op.create_table(
        "session_trace",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("displaced", sa.Text(), nullable=False),
        sa.Column("probe_session", sa.String(), nullable=True),
        sa.Column("probe_sequence", sa.BigInteger(), nullable=False),
        sa.Column("probed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "shown",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("model", "value", "device_id"),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("shown", schema=None) as batch_op:
        batch_op.create_index("shown_of", ["device_id"], unique=False)

    op.create_table(
        "signature_batch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("signature_batch", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_signature_batch_key_id"), ["key_id"], unique=False)

    op.create_table(
        "signature_count",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "signature_intent",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "station",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("certificate_serial", sa.String(), nullable=False),
        sa.Column("budget", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "upload",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    with op.batch_alter_table("upload", schema=None) as batch_op:
        batch_op.create_index("upload_at", ["at"], unique=False)
        batch_op.create_index("upload_of_device", ["device_id", "at"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("upload", schema=None) as batch_op:
        batch_op.drop_index("upload_of_device")
        batch_op.drop_index("upload_at")

    op.drop_table("upload")
    op.drop_table("station")
    op.drop_table("signature_intent")
    op.drop_table("signature_count")
    with op.batch_alter_table("signature_batch", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_signature_batch_key_id"))

    op.drop_table("signature_batch")
    with op.batch_alter_table("shown", schema=None) as batch_op:
        batch_op.drop_index("shown_of")

    op.drop_table("shown")
    op.drop_table("session_trace")
    with op.batch_alter_table("revocation", schema=None) as batch_op:
        batch_op.drop_index("revocation_issuer")
        batch_op.drop_index(batch_op.f("ix_revocation_serial"))

    op.drop_table("revocation")
    with op.batch_alter_table("removed_attestation", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_removed_attestation_device_id"))

    op.drop_table("removed_attestation")
    op.drop_table("removed")
    op.drop_table("release")
    with op.batch_alter_table("refused_evidence", schema=None) as batch_op:
        batch_op.drop_index("refused_evidence_of")

    op.drop_table("refused_evidence")
    with op.batch_alter_table("refusal", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_refusal_device_id"))
        batch_op.drop_index(batch_op.f("ix_refusal_at"))

    op.drop_table("refusal")
    op.drop_table("profile")
    with op.batch_alter_table("policy", schema=None) as batch_op:
        batch_op.drop_index(
            "policy_in_force", sqlite_where=sa.text("state = 'active'"), postgresql_where=sa.text("state = 'active'")
        )

    op.drop_table("policy")
    op.drop_table("operator")
    op.drop_table("mqttsession")
    with op.batch_alter_table("log_use", schema=None) as batch_op:
        batch_op.drop_index("log_use_of_body")

    op.drop_table("log_use")
    op.drop_table("log_content")
    op.drop_table("log_body")
    op.drop_table("lease")
    with op.batch_alter_table("leaf", schema=None) as batch_op:
        batch_op.drop_index(
            "leaf_rare",
            sqlite_where=sa.text("kind NOT IN ('certificate', 'attestation', 'revocation')"),
            postgresql_where=sa.text("kind NOT IN ('certificate', 'attestation', 'revocation')"),
        )

    op.drop_table("leaf")
    op.drop_table("judge_again")
    with op.batch_alter_table("finding", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_finding_device_id"))
        batch_op.drop_index(
            "finding_open_newest",
            sqlite_where=sa.text("closed_at IS NULL"),
            postgresql_where=sa.text("closed_at IS NULL"),
        )
        batch_op.drop_index(
            "finding_open", sqlite_where=sa.text("closed_at IS NULL"), postgresql_where=sa.text("closed_at IS NULL")
        )

    op.drop_table("finding")
    with op.batch_alter_table("est_token", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_est_token_expires_at"))
        batch_op.drop_index(batch_op.f("ix_est_token_device_id"))

    op.drop_table("est_token")
    op.drop_table("est_request")
    with op.batch_alter_table("enrollment", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_enrollment_expires_at"))
        batch_op.drop_index(batch_op.f("ix_enrollment_device_id"))

    op.drop_table("enrollment")
    with op.batch_alter_table("ek_root", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_ek_root_manufacturer"))
        batch_op.drop_index(batch_op.f("ix_ek_root_changed"))

    op.drop_table("ek_root")
    op.drop_table("director_metadata")
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_device_station"))
        batch_op.drop_index(batch_op.f("ix_device_ak_name"))
        batch_op.drop_index("device_of_model")
        batch_op.drop_index("device_due")

    op.drop_table("device")
    op.drop_table("crl")
    with op.batch_alter_table("command", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_command_device_id"))
        batch_op.drop_index("command_due")

    op.drop_table("command")
    op.drop_table("checkpoint")
    with op.batch_alter_table("certificate", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_certificate_key_id"))
        batch_op.drop_index(batch_op.f("ix_certificate_device_id"))
        batch_op.drop_index(
            "certificate_superseded",
            sqlite_where=sa.text("revoke_at IS NOT NULL"),
            postgresql_where=sa.text("revoke_at IS NOT NULL"),
        )
        batch_op.drop_index(
            "certificate_revoked",
            sqlite_where=sa.text("state = 'revoked'"),
            postgresql_where=sa.text("state = 'revoked'"),
        )
        batch_op.drop_index(
            "certificate_quarantine",
            sqlite_where=sa.text("profile = 'quarantine'"),
            postgresql_where=sa.text("profile = 'quarantine'"),
        )

    op.drop_table("certificate")
    op.drop_table("bundle")
    with op.batch_alter_table("bootlog", schema=None) as batch_op:
        batch_op.drop_index("log_of_body")

    op.drop_table("bootlog")
    op.drop_table("authority")
    with op.batch_alter_table("attestation", schema=None) as batch_op:
        batch_op.drop_index("attestation_of")

    op.drop_table("attestation")
    op.drop_table("assignment")
