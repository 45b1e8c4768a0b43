// Runs the decode kernel on the CPU, as plain C++.
//
// Standard input: four u64 (device address of the arena, arena bytes, entry count, tiles), then
// the table, then the arena. Standard output: the arena afterwards.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../src/kernels/decode.cu"

static void check(bool holds, const char *what) {
    if (!holds) {
        std::fprintf(stderr, "%s\n", what);
        std::exit(1);
    }
}

int main() {
    u64 header[4];
    check(std::fread(header, 8, 4, stdin) == 4, "no header");
    const u64 base = header[0], bytes = header[1], count = header[2], tiles = header[3];
    Entry *entries = (Entry *)std::malloc(count * sizeof(Entry));
    check(std::fread(entries, sizeof(Entry), count, stdin) == count, "no table");
    // What is allocated is just the arena, so that a sanitizer sees every access outside.
    u8 *arena = (u8 *)std::aligned_alloc(256, bytes);
    check(std::fread(arena, 1, bytes, stdin) == bytes, "no arena");
    for (u64 i = 0; i < count; i++) {
        entries[i].source += (u64)arena - base;
        entries[i].destination += (u64)arena - base;
    }
    static Shared shared;
    for (u64 tile = 0; tile < tiles; tile++) {
        std::memset(&shared, 0xa5, sizeof shared);
        decode_tile(entries, (u32)count, (u32)tile, shared);
    }
    check(std::fwrite(arena, 1, bytes, stdout) == bytes, "no output");
    std::free(arena);
    std::free(entries);
    return 0;
}
