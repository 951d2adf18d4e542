-- Records of builds with secrets that daemons must still drop from their history.

CREATE TABLE removals (
    daemon TEXT NOT NULL,
    ref    TEXT NOT NULL,
    PRIMARY KEY (daemon, ref)
) STRICT, WITHOUT ROWID;
