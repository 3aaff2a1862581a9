/* The access path of the `optimized` design in C: what a guest's MSR access does to the registers of its vCPU and its physical CPU,
 * what it costs, and the row hash. No truth, no action histograms, no other guest, and where host perf, a host interrupt or a drawn
 * cost would come in it gives up: a bound for the kernels, which have all these.
 *
 * Every field is a word, so that Python fills a state in as an array of words, in this order.
 */

#include <stdint.h>

typedef uint64_t u64;

#define NO_SLOT 255
#define FIXED 8
#define EVENTSEL_EN (1ull << 22)
#define EVENTSEL_INT (1ull << 20)

struct state {
	u64 now, irq_at, hash, accesses, exits;
	u64 ns[2]; /* booked to exits, to accesses */
	/* the vCPU's registers, as KVM keeps them */
	u64 nr_gp, nr_fixed, mask, global_valid;
	u64 eventsel[8], fixed_ctrl, global_ctrl, global_status, ovf_ctrl, counter[11], lvtpc;
	/* what the design keeps: which hardware counter serves a vPMC */
	u64 has_event, hw_slot[11], used, hw_ctrl, hw_owned, loaded;
	/* the physical CPU's registers */
	u64 hw_eventsel[8], hw_fixed_ctrl, hw_global_ctrl, hw_global_status, hw_counter[11];
	u64 hw_kind[11], hw_cpl[11], hw_armed, hw_active, hw_host_ctrl, hw_guest_ctrl;
	/* the durations of basic operations: constant part and median in ns, spread */
	u64 costs[7][3];
};

struct record {
	u64 head, value, gap;
};

enum { READ = 1, WRITE = 2, RDPMC = 3 };
enum { OK = 0, GP = 1 };
enum { EXIT, ENTRY, MSR_INTERCEPT, RDPMC_INTERCEPT, HW_WRMSR, HW_RDMSR, HW_RDPMC };
enum { EXITS, ACCESSES };

static int slow;

static inline u64 cost(const struct state *t, int which)
{
	const u64 *row = t->costs[which];
	if (row[2])
		slow = 1;
	return row[0] + row[1];
}

static inline u64 slots_of(u64 bits)
{
	return (bits & 0xff) | ((bits >> 24) & 0x700);
}

static inline u64 slot_bit(u64 slot)
{
	return slot < FIXED ? 1ull << slot : 1ull << (slot + 24);
}

static inline u64 event_kind(const u64 *kinds, u64 eventsel)
{
	u64 key = eventsel & (eventsel & 0xff000000 ? KEY_MASK : KEY_WITHOUT_INV);
	u64 word = kinds[1 + ((key * kinds[0]) >> KIND_SHIFT)];
	return word >> 8 == key ? word & 0xff : KIND_NONE;
}

static inline void spend(struct state *t, int cause, u64 ns)
{
	u64 end = t->now + ns;
	t->ns[cause] += ns;
	if (t->irq_at < end || t->hw_armed & slots_of(t->hw_host_ctrl))
		slow = 1;
	t->now = end;
}

static inline void hw_global(struct state *t, u64 value)
{
	t->hw_global_ctrl = value;
	t->hw_active = t->hw_armed & slots_of(value);
}

static inline void hw_eventsel(struct state *t, const u64 *kinds, u64 slot, u64 value)
{
	t->hw_eventsel[slot] = value;
	if (value & EVENTSEL_EN) {
		t->hw_kind[slot] = event_kind(kinds, value);
		t->hw_cpl[slot] = ((value >> 17) & 1) | ((value >> 16) & 1) << 1;
		t->hw_armed |= 1ull << slot;
	} else {
		t->hw_armed &= ~(1ull << slot);
	}
	t->hw_active = t->hw_armed & slots_of(t->hw_global_ctrl);
}

static inline void hw_fixed_ctrl(struct state *t, u64 value)
{
	t->hw_fixed_ctrl = value;
	for (u64 i = 0; i < 3; i++) {
		u64 levels = (value >> (4 * i)) & 3;
		t->hw_cpl[FIXED + i] = levels;
		if (levels)
			t->hw_armed |= 1ull << (FIXED + i);
		else
			t->hw_armed &= ~(1ull << (FIXED + i));
	}
	t->hw_active = t->hw_armed & slots_of(t->hw_global_ctrl);
}

static inline u64 perf_config(const struct state *t, u64 slot)
{
	static const u64 events[] = {0x00c0, 0x003c, 0x0300};
	if (slot < FIXED)
		return (t->eventsel[slot] & 0xff8fffff) | EVENTSEL_INT;
	u64 field = t->fixed_ctrl >> (4 * (slot - FIXED));
	return events[slot - FIXED] | EVENTSEL_INT | (field & 2) << 15 | (field & 1) << 17;
}

static inline int locally_enabled(const struct state *t, u64 slot)
{
	if (slot < FIXED)
		return (t->eventsel[slot] & EVENTSEL_EN) != 0;
	return ((t->fixed_ctrl >> (4 * (slot - FIXED))) & 3) != 0;
}

static inline int interrupts(const struct state *t, u64 slot)
{
	if (slot < FIXED)
		return (t->eventsel[slot] & EVENTSEL_INT) != 0;
	return ((t->fixed_ctrl >> (4 * (slot - FIXED))) & 8) != 0;
}

static u64 arm(struct state *t, const u64 *kinds, u64 slot)
{
	u64 h = t->hw_slot[slot];
	u64 config = perf_config(t, slot);
	int on = locally_enabled(t, slot);
	if (h < FIXED) {
		if (!interrupts(t, slot))
			config &= ~EVENTSEL_INT;
		hw_eventsel(t, kinds, h, config | (on ? EVENTSEL_EN : 0));
		return cost(t, HW_WRMSR);
	}
	u64 shift = 4 * (h - FIXED);
	u64 field = on ? 8 | ((config >> 16) & 1) << 1 | ((config >> 17) & 1) : 0;
	if (!interrupts(t, slot))
		field &= ~8ull;
	hw_fixed_ctrl(t, (t->hw_fixed_ctrl & ~(0xfull << shift)) | field << shift);
	return cost(t, HW_WRMSR) + cost(t, HW_RDMSR);
}

static inline u64 control(struct state *t, const u64 *kinds, u64 slot, u64 before)
{
	t->used |= 1ull << slot;
	if (t->hw_slot[slot] == NO_SLOT || !t->loaded || ((perf_config(t, slot) ^ before) & 0xff8cffff)) {
		slow = 1;
		return 0;
	}
	return arm(t, kinds, slot);
}

static inline void global_ctrl(struct state *t, u64 value)
{
	u64 on = slots_of(value & ~t->global_ctrl), bits = 0;
	t->global_ctrl = value;
	for (; on; on &= on - 1) {
		u64 slot = __builtin_ctzll(on);
		if (locally_enabled(t, slot)) {
			t->used |= 1ull << slot;
			if (t->hw_slot[slot] == NO_SLOT)
				slow = 1;
		}
	}
	for (u64 slots = t->has_event; slots; slots &= slots - 1) {
		u64 slot = __builtin_ctzll(slots);
		if ((slots_of(value) >> slot) & 1 && t->hw_slot[slot] != NO_SLOT)
			bits |= slot_bit(t->hw_slot[slot]);
	}
	t->hw_ctrl = bits;
}

static inline void pull_status(struct state *t)
{
	if (!(t->hw_global_status & t->hw_owned))
		return;
	for (u64 slots = t->has_event; slots; slots &= slots - 1) {
		u64 slot = __builtin_ctzll(slots), bit = slot_bit(t->hw_slot[slot]);
		if (t->hw_slot[slot] != NO_SLOT && t->hw_global_status & bit) {
			t->hw_global_status &= ~bit;
			t->global_status |= slot_bit(slot);
		}
	}
}

static inline u64 write_counter(struct state *t, u64 slot, u64 value)
{
	u64 word = slot < FIXED ? (u64)(int64_t)(int32_t)value & t->mask : value & t->mask;
	t->used |= 1ull << slot;
	if (!t->loaded || t->hw_slot[slot] == NO_SLOT) {
		t->counter[slot] = word;
		return 0;
	}
	t->hw_counter[t->hw_slot[slot]] = word;
	return cost(t, HW_WRMSR);
}

static inline u64 read_counter(const struct state *t, u64 slot, u64 *value)
{
	if (!t->loaded || t->hw_slot[slot] == NO_SLOT) {
		*value = t->counter[slot];
		return 0;
	}
	*value = t->hw_counter[t->hw_slot[slot]];
	return cost(t, HW_RDPMC);
}

static inline u64 set_msr(struct state *t, const u64 *kinds, u64 msr, u64 value, u64 *outcome)
{
	u64 ns = cost(t, MSR_INTERCEPT);
	if (msr == 0x38f) {
		if (value & ~t->global_valid)
			*outcome = GP;
		else if (value != t->global_ctrl)
			global_ctrl(t, value);
	} else if (msr - 0x186 < t->nr_gp) {
		u64 before = perf_config(t, msr - 0x186);
		if (value & 0xffffffff00200000) {
			*outcome = GP;
		} else if (value != t->eventsel[msr - 0x186]) {
			t->eventsel[msr - 0x186] = value;
			ns += control(t, kinds, msr - 0x186, before);
		}
	} else if (msr - 0xc1 < t->nr_gp) {
		ns += write_counter(t, msr - 0xc1, value);
	} else if (msr == 0x38d) {
		u64 changed = t->fixed_ctrl ^ value;
		if (value & 0xfffffffffffff444)
			*outcome = GP;
		else
			for (u64 i = 0; i < 3; i++, changed >>= 4)
				if (changed & 0xf) {
					u64 before = perf_config(t, FIXED + i);
					u64 field = 0xfull << (4 * i);
					t->fixed_ctrl = (t->fixed_ctrl & ~field) | (value & field);
					ns += control(t, kinds, FIXED + i, before);
				}
	} else if (msr - 0x309 < t->nr_fixed) {
		ns += write_counter(t, FIXED + (msr - 0x309), value);
	} else if (msr == 0x390) {
		if (value & ~(t->global_valid | 3ull << 62)) {
			*outcome = GP;
		} else {
			t->ovf_ctrl = value;
			pull_status(t);
			t->global_status &= ~value;
		}
	} else if (msr == 0x834) {
		t->lvtpc = value;
	} else if (msr != 0x1d9 || value & ~3ull) {
		*outcome = GP;
	}
	return ns;
}

static inline u64 get_msr(struct state *t, u64 msr, u64 *value, u64 *outcome)
{
	u64 ns = cost(t, MSR_INTERCEPT);
	if (msr == 0x38e) {
		pull_status(t);
		*value = t->global_status;
	} else if (msr == 0x38d) {
		*value = t->fixed_ctrl;
	} else if (msr == 0x38f) {
		*value = t->global_ctrl;
	} else if (msr - 0x186 < t->nr_gp) {
		*value = t->eventsel[msr - 0x186];
	} else if (msr - 0xc1 < t->nr_gp) {
		ns += read_counter(t, msr - 0xc1, value);
	} else if (msr - 0x309 < t->nr_fixed) {
		ns += read_counter(t, FIXED + (msr - 0x309), value);
	} else if (msr == 0x390) {
		*value = t->ovf_ctrl;
	} else if (msr == 0x834) {
		*value = t->lvtpc;
	} else if (msr != 0x1d9) {
		*outcome = GP;
	}
	return ns;
}

static inline u64 rdpmc(struct state *t, u64 index, u64 *value, u64 *outcome)
{
	u64 number = index & 0x3fffffff, fixed = index & 0x40000000;
	u64 ns = cost(t, RDPMC_INTERCEPT);
	if (number >= (fixed ? t->nr_fixed : t->nr_gp)) {
		*outcome = GP;
		return ns;
	}
	ns += read_counter(t, fixed ? FIXED + number : number, value);
	if (index & 0x80000000)
		*value &= 0xffffffff;
	return ns;
}

static inline u64 mix(u64 state, u64 at_ns, u64 what, u64 value)
{
	u64 x = (at_ns * 0x9e3779b97f4a7c15) ^ (what * 0xc2b2ae3d27d4eb4f) ^ (value * 0x165667b19e3779f9);
	x = (state ^ x ^ (x >> 32)) * 0xff51afd7ed558ccd;
	return x ^ (x >> 29);
}

/* Plays records until the virtual time is reached; returns how many, or -1 where it gave up. */
int64_t play(struct state *t, const u64 *kinds, const struct record *stream, u64 records, u64 until)
{
	u64 i = 0;
	slow = 0;
	while (i < records && t->now < until) {
		u64 operation = stream[i].head & 0xff, reg = stream[i].head >> 8, value = stream[i].value;
		u64 outcome = OK, ns;

		/* exit: the guest's counters stop, the host's are on */
		hw_global(t, t->hw_host_ctrl);
		spend(t, EXITS, cost(t, EXIT));
		t->exits++;

		if (operation == WRITE)
			ns = set_msr(t, kinds, reg, value, &outcome);
		else if (operation == READ)
			ns = get_msr(t, reg, &value, &outcome);
		else
			ns = rdpmc(t, reg, &value, &outcome);
		spend(t, ACCESSES, ns);

		/* entry */
		hw_global(t, (t->hw_guest_ctrl & ~t->hw_owned) | t->hw_ctrl);
		spend(t, EXITS, cost(t, ENTRY));
		if (slow)
			return -1;

		t->accesses++;
		t->hash = mix(t->hash, t->now, operation | outcome << 8 | reg << 16, value);
		i++;
	}
	return (int64_t)i;
}
