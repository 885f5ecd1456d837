// What is known of the tracer and of each frame; values (`Shown`) and locals (`Locals`) as they are written.
#pragma once

#include "native_table.h"

namespace {

struct Follower;

// The function for `sys.settrace`.
struct Tracer {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *parts, *flush, *end, *included, *describe;
    PyObject *value, *known_class, *values, *look_at_block;  // of Shown, a Shown itself, and of Locals
    PyObject *file, *missing;
    PyObject* classes;  // class: what known_class said
    Py_ssize_t depth_limit, chars, max_items, max_form;
    Py_ssize_t ticks, depth;
    unsigned long long epoch;
    Follower** stack;     // of depth_limit places, held
    unsigned char* form;  // of max_form bytes
};

// The function of one frame. It and the tracer refer to nothing that refers to them, apart from the stack: the garbage collector need not
// know them, and so the program does not find them there.
struct Follower {
    PyObject_VAR_HEAD
    vectorcallfunc call;
    Tracer* tracer;
    Table* table;
    bool is_function;
    unsigned long long seen_epoch;
    const Line* line;                           // that ran last; none at first
    PyObject *block_written, *block_changing;  // dicts, when it is no function
    // Of each local: what was written, None where that was not kept; of one that can change, what was written; the order of these.
    PyObject **written, **changing;
    Py_ssize_t n_changing, *order;
};

constexpr Py_ssize_t QUICK_CHARS = 100;
PyObject* word_wary;

bool append(Tracer* tracer, PyObject* part) { return PyList_Append(tracer->parts, part) == 0; }

bool append_number(Tracer* tracer, long long number) {
    Ref part(PyLong_FromLongLong(number));
    return part && append(tracer, part.get());
}

// ---- values ----

bool is_small_int(PyObject* value) {
    const Py_ssize_t digits = Py_ABS(Py_SIZE(value));
    return digits <= 2 || (digits <= 3 && _PyLong_NumBits(value) <= 64);
}

// 1 when both read the same, 0, or -1 with an error. Both are of built-in types.
int same(PyObject* one, PyObject* other) {
    if (one == other) return 1;
    return Py_TYPE(one) == Py_TYPE(other) ? PyObject_RichCompareBool(one, other, Py_EQ) : 0;
}

// Writes a container into the tracer's buffer: the size; -1 when Python must say what is written of it, -2 with an error.
Py_ssize_t write_form(Tracer* tracer, PyObject* container) {
    Form form(tracer->form, tracer->max_form, tracer->max_items);
    if (form.write(container)) return form.size();
    return form.is_large() && PyObject_SetAttr(tracer->values, word_wary, Py_True) != 0 ? -2 : -1;
}

bool is_form(PyObject* known, const Tracer* tracer, Py_ssize_t size) {
    return known != nullptr && PyBytes_CheckExact(known) && PyBytes_GET_SIZE(known) == size &&
           std::memcmp(PyBytes_AS_STRING(known), tracer->form, static_cast<std::size_t>(size)) == 0;
}

Ref make_form(const Tracer* tracer, Py_ssize_t size) {
    return Ref(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(tracer->form), size));
}

// What `known_class` says; none with an error.
Ref find_class(Tracer* tracer, PyObject* kind) {
    Ref known = Ref::to(PyDict_GetItemWithError(tracer->classes, kind));
    if (!known && PyErr_Occurred()) return Ref();
    if (!known) {
        known = Ref(PyObject_CallOneArg(tracer->known_class, kind));
        if (!known || PyDict_SetItem(tracer->classes, kind, known.get()) != 0) return Ref();
    }
    if (PyTuple_CheckExact(known.get()) && PyTuple_GET_SIZE(known.get()) == 4) return known;
    return PyErr_SetString(PyExc_TypeError, "no class"), Ref();
}

// Of an instance that has nothing but a dictionary of plain values; none without an error when Python must say.
Ref shown_instance(Tracer* tracer, PyObject* value, PyObject* old) {
    Ref known = find_class(tracer, reinterpret_cast<PyObject*>(Py_TYPE(value)));
    if (!known) return Ref();
    PyObject *getter = PyTuple_GET_ITEM(known.get(), 1), *name = PyTuple_GET_ITEM(known.get(), 2);
    PyObject* is_dataclass = PyTuple_GET_ITEM(known.get(), 3);
    if (getter == Py_None) return Ref();
    Ref own(PyObject_CallOneArg(getter, value));
    const Py_ssize_t size = own && PyDict_CheckExact(own.get()) ? write_form(tracer, own.get()) : -1;
    if (size < 0) return Ref();
    if (old != nullptr && PyTuple_CheckExact(old) && PyTuple_GET_SIZE(old) == 3 && PyTuple_GET_ITEM(old, 0) == name &&
        PyTuple_GET_ITEM(old, 1) == is_dataclass && is_form(PyTuple_GET_ITEM(old, 2), tracer, size)) {
        return Ref::to(old);
    }
    Ref form = make_form(tracer, size);
    return form ? Ref(PyTuple_Pack(3, name, is_dataclass, form.get())) : Ref();
}

// What is written of a value; `old`, what was written of it before, or none. None with an error.
Ref shown(Tracer* tracer, PyObject* value, PyObject* old) {
    PyTypeObject* type = Py_TYPE(value);
    if (type == &PyList_Type || type == &PyDict_Type || type == &PyTuple_Type) {
        const Py_ssize_t size = write_form(tracer, value);
        if (size == -2) return Ref();
        if (size >= 0) return is_form(old, tracer, size) ? Ref::to(old) : make_form(tracer, size);
    } else if (type == &PyUnicode_Type) {
        const Py_ssize_t length = length_of(value);
        if (length >= 0 && length <= tracer->chars) return Ref::to(value);
    } else if (type == &PyLong_Type) {
        if (is_small_int(value)) return Ref::to(value);
    } else if (value == Py_None || type == &PyFloat_Type || type == &PyBool_Type) {
        return Ref::to(value);
    } else if (Py_IS_TYPE(reinterpret_cast<PyObject*>(type), &PyType_Type) && (type->tp_flags & Py_TPFLAGS_HEAPTYPE)) {
        Ref found = shown_instance(tracer, value, old);
        if (found || PyErr_Occurred()) return found;
    }
    return Ref(PyObject_CallOneArg(tracer->value, value));
}

// ---- locals ----

PyObject* name_of(const Follower* self, Py_ssize_t local) { return PyTuple_GET_ITEM(self->table->names, local); }

bool append_local(Follower* self, Py_ssize_t local, PyObject* shown) {
    return append(self->tracer, name_of(self, local)) && append(self->tracer, shown);
}

void keep(PyObject** place, PyObject* value) {
    PyObject* old = *place;
    *place = Py_XNewRef(value);
    Py_XDECREF(old);
}

void forget_changing(Follower* self, Py_ssize_t local) {
    if (self->changing[local] == nullptr) return;
    keep(&self->changing[local], nullptr);
    Py_ssize_t place = 0;
    while (place < self->n_changing && self->order[place] != local) place++;
    if (place == self->n_changing) return;
    self->n_changing--;
    std::memmove(self->order + place, self->order + place + 1, sizeof(Py_ssize_t) * static_cast<std::size_t>(self->n_changing - place));
}

void set_changing(Follower* self, Py_ssize_t local, PyObject* shown) {
    if (self->changing[local] == nullptr && self->n_changing < Py_SIZE(self)) self->order[self->n_changing++] = local;
    keep(&self->changing[local], shown);
}

// A local that was bound, or one that is gone.
bool look(Follower* self, Py_ssize_t local, PyObject* value) {
    if (value == nullptr) {
        if (self->written[local] == nullptr) return true;
        keep(&self->written[local], nullptr);
        forget_changing(self, local);
        return append_local(self, local, Py_Ellipsis);
    }
    Ref old = Ref::to(self->changing[local]);
    Ref fresh = shown(self->tracer, value, old.get());
    if (!fresh) return false;
    if (PyBytes_CheckExact(fresh.get()) || PyTuple_CheckExact(fresh.get())) {
        const int known = old ? same(old.get(), fresh.get()) : 0;
        if (known != 0) return known > 0;
        set_changing(self, local, fresh.get());
        keep(&self->written[local], Py_None);
    } else {
        forget_changing(self, local);
        old = Ref::to(self->written[local]);
        const int known = old && old.get() != Py_None ? same(old.get(), fresh.get()) : 0;
        if (known != 0) return known > 0;
        keep(&self->written[local], fresh.get());
    }
    return append_local(self, local, fresh.get());
}

bool is_quick(PyObject* value) {
    PyTypeObject* type = Py_TYPE(value);
    if (type == &PyLong_Type) return is_small_int(value);
    if (type == &PyUnicode_Type) {
        const Py_ssize_t length = length_of(value);
        return length >= 0 && length < QUICK_CHARS;
    }
    return type == &PyFloat_Type || type == &PyBool_Type;
}

bool look_at_bound(Follower* self, PyObject* values, const Py_ssize_t* stores, Py_ssize_t count) {
    for (Py_ssize_t k = 0; k < count; k++) {
        const Py_ssize_t local = stores[k];
        Ref value = Ref::to(PyDict_GetItemWithError(values, name_of(self, local)));
        if (!value && PyErr_Occurred()) return false;
        if (value && self->changing[local] == nullptr && is_quick(value.get())) {
            keep(&self->written[local], Py_None);
            if (!append_local(self, local, value.get())) return false;
        } else if (!look(self, local, value.get())) {
            return false;
        }
    }
    return true;
}

bool look_at_contents(Follower* self, PyObject* values, int effect) {
    for (Py_ssize_t place = 0; place < self->n_changing; place++) {
        const Py_ssize_t local = self->order[place];
        Ref old = Ref::to(self->changing[local]);
        if (!old || (effect != CHANGES && !PyTuple_CheckExact(old.get()))) continue;
        Ref value = Ref::to(PyDict_GetItemWithError(values, name_of(self, local)));
        if (!value && PyErr_Occurred()) return false;
        Ref fresh = shown(self->tracer, value ? value.get() : self->tracer->missing, old.get());
        const int known = fresh ? same(old.get(), fresh.get()) : -1;
        if (known < 0) return false;
        if (known > 0) continue;
        set_changing(self, local, fresh.get());
        if (!append_local(self, local, fresh.get())) return false;
    }
    return true;
}

bool look_at_new(Follower* self, PyObject* values) {
    Py_ssize_t place = 0, likely = 0;
    PyObject *key, *item;
    while (PyDict_Next(values, &place, &key, &item)) {  // which bears that the dictionary changes meanwhile
        Ref name = Ref::to(key), value = Ref::to(item);
        const Py_ssize_t local = find_name(self->table, name.get(), likely);
        if (local < 0) continue;
        likely = local + 1;
        if (PyLong_CheckExact(value.get()) && is_small_int(value.get())) {
            keep(&self->written[local], Py_None);
            if (!append_local(self, local, value.get())) return false;
        } else if (!look(self, local, value.get())) {
            return false;
        }
    }
    return true;
}

bool look_at_block(Follower* self, PyObject* values) {
    PyObject* arguments[] = {values, self->block_written, self->block_changing};
    Ref done(PyObject_Vectorcall(self->tracer->look_at_block, arguments, 3, nullptr));
    return static_cast<bool>(done);
}

}  // namespace
