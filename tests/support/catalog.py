"""What a database holds, by PostgreSQL's own catalogue: everything that a migration can make, told so that two compare."""

from __future__ import annotations

import asyncpg

# The log table's days are named after the day on which they were made.
_OURS = r"""n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'"""
_NO_DAY = r"AND c.relname !~ '^record_\d+(_pkey)?$'"
_GRANTS = "(SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest({}) a)"

_QUERIES = (
    f"""
    SELECT 'schema ' || n.nspname, concat_ws(' | ', pg_get_userbyid(n.nspowner), {_GRANTS.format("n.nspacl")},
        obj_description(n.oid, 'pg_namespace'))
    FROM pg_namespace n WHERE {_OURS}""",
    f"""
    SELECT CASE c.relkind WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence'
            ELSE 'table' END || format(' %s.%s', n.nspname, c.relname),
        concat_ws(' | ', c.relkind, c.relpersistence, c.reloptions::text, pg_get_partkeydef(c.oid),
            pg_get_expr(c.relpartbound, c.oid), CASE WHEN c.relkind IN ('i', 'I') THEN pg_get_indexdef(c.oid) END,
            CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
            (SELECT format('%s from %s by %s', seqtypid::regtype, seqstart, seqincrement) FROM pg_sequence
                WHERE seqrelid = c.oid),
            pg_get_userbyid(c.relowner), {_GRANTS.format("c.relacl")}, obj_description(c.oid, 'pg_class'))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_OURS} {_NO_DAY}""",
    f"""
    SELECT format('column %s.%s.%s', n.nspname, c.relname, k.attname),
        concat_ws(' | ', format_type(k.atttypid, k.atttypmod), CASE WHEN k.attnotnull THEN 'NOT NULL' END,
            'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), k.attcollation::regcollation, k.attstorage,
            k.attcompression, k.attidentity, k.attgenerated, {_GRANTS.format("k.attacl")},
            col_description(c.oid, k.attnum))
    FROM pg_attribute k JOIN pg_class c ON c.oid = k.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = k.attnum
    WHERE k.attnum > 0 AND NOT k.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm') AND {_OURS} {_NO_DAY}""",
    f"""
    SELECT format('constraint %s.%s.%s', n.nspname, c.relname, k.conname),
        concat_ws(' | ', pg_get_constraintdef(k.oid), CASE WHEN k.convalidated THEN 'validated' END)
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE k.contype <> 'n' AND {_OURS} {_NO_DAY}""",
    f"""
    SELECT format('function %s', p.oid::regprocedure),
        concat_ws(' | ', pg_get_functiondef(p.oid), pg_get_userbyid(p.proowner), {_GRANTS.format("p.proacl")},
            obj_description(p.oid, 'pg_proc'))
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.prokind IN ('f', 'p') AND {_OURS}""",
    f"""
    SELECT format('trigger %s.%s.%s', n.nspname, c.relname, t.tgname), pg_get_triggerdef(t.oid)
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT t.tgisinternal AND {_OURS}""",
    f"""
    SELECT format('type %s.%s', n.nspname, t.typname), concat_ws(' | ', t.typtype, format_type(t.typbasetype, t.typtypmod),
        (SELECT string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid))
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype IN ('e', 'd') AND {_OURS}""",
    "SELECT 'extension ' || extname, extversion FROM pg_extension",
)


async def described(url: str) -> dict[str, str]:
    """By name ("column triggers.run.node") what it is: type, default, definition, owner, grants, comment. The order of
    columns is left out, because a column that is added later stands last."""
    connection = await asyncpg.connect(url)
    try:
        return {name: said or "" for query in _QUERIES for name, said in await connection.fetch(query)}
    finally:
        await connection.close()


async def tables(connection: asyncpg.Connection) -> list[str]:
    """All tables of ours that hold rows of their own or by their partitions, but for Alembic's: "schema.table"."""
    rows = await connection.fetch(
        f"""
        SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> 'alembic_version' AND {_OURS} ORDER BY 1
        """
    )
    return [row[0] for row in rows]


async def contents(connection: asyncpg.Connection) -> dict[str, str]:
    """By table its rows, as the text of a JSON array."""
    return {
        table: await connection.fetchval(f"SELECT coalesce(json_agg(t ORDER BY t::text), '[]')::text FROM {table} t")
        for table in await tables(connection)
    }
